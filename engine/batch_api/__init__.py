"""A host's batch API: files of requests that it answers within hours or days, at a lower price.

`limits` are the facts of a host, `host` speaks to it, `record` is what the sink knows of one batch, and
`desk` brings lines in and answers out so that none is submitted twice. The turns of a request go through
it in engine.batch.hosted.
"""
