"""A question as Headrace sends it, with the switch of thinking and a schema."""

ASKED = {
    "messages": [{"role": "user", "content": "Which colour?"}],
    "max_tokens": 8,
    "chat_template_kwargs": {"thinking": False},
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"enum": ["red", "blue"]}},
    },
}
