"""The verdict: each way of working is looked at, requirements that contradict each other are named, one is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from config.answers import NO_GPUS, Answers, Hosting, ModelChoice
from config.load import load_profile
from engine.profile import Profile
from flows.decision import host, own
from flows.decision.finding import Finding, worst
from flows.decision.model import (
    CUT,
    K25_CONTEXT_TOKENS,
    NAMED,
    Kind,
    choose_model,
    sees_enough,
    small_sees_enough,
)
from flows.run.routes import missing_certifications

Rung = Literal["pilot", "hybrid", "autonomous", "agentic"]
State = Literal["go", "open", "no", "contradiction"]

MAKER = "Moonshot AI"
"""Maker of Kimi K2.5: its own host is the API, others' are hosted."""

_MARKS = {True: "yes ", False: "no  ", None: "open"}

_SMALL_GB = 16
"""A dense model of 8 billion weights of 2 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of working."""

    name: str
    model: ModelChoice
    hosting: Hosting
    title: str
    engines: tuple[str, ...]
    findings: tuple[Finding, ...]
    rung: Rung

    @property
    def holds(self) -> bool | None:
        """Return whether nothing speaks against it; None where something is not known."""
        return worst(self.findings)


def decide(answers: Answers) -> dict[str, Any]:
    """Return the verdict with its reasons, the checklist of every way, and what to do next, as JSON.

    Raises:
        ConfigError: There is no such profile.
    """
    model, about_model = choose_model(answers)
    ways = _ways(answers)
    against = _contradictions(answers, ways)
    able = [way for way in ways if _is_allowed(way, answers)]
    able.sort(key=lambda way: (way.holds is False, _rank(way, model, answers)))
    chosen = able[0] if able and able[0].holds is not False else None
    state, sentence = _verdict(chosen, against, able, answers)
    return {
        "verdict": state,
        "sentence": sentence,
        "model": {"choice": model, **asdict(about_model)},
        "choice": None if against or chosen is None else chosen.name,
        "rung": None if against or chosen is None else chosen.rung,
        "because": [] if against or chosen is None else _said(chosen.findings, holds=True),
        "missing": [] if against or chosen is None else _said(chosen.findings, holds=None),
        "cautions": [] if against or chosen is None else _cautions(chosen),
        "next": _next(chosen, against, able),
        "contradictions": [asdict(one) for one in against],
        "ways": [
            {
                "way": way.name,
                "title": way.title,
                "holds": way.holds,
                "checklist": [asdict(finding) for finding in way.findings],
            }
            for way in ways
        ],
        "answers": answers.model_dump(mode="json"),
    }


def _ways(answers: Answers) -> list[Way]:
    profile = load_profile(answers.engine)
    hosts = [_host_way(answers, load_profile(name)) for name in answers.hosts]
    mine = _own_way(answers, profile)
    found = [*hosts, mine, _small_way(answers), _proprietary_way(answers)]
    if answers.sensitive == "some":
        found = [*(_hybrid(one, mine) for one in hosts), *found]
    return found


def _host_way(answers: Answers, profile: Profile) -> Way:
    return Way(
        name=profile.name,
        model="kimi-k2.5",
        hosting="api" if profile.hosted_by == MAKER else "hosted",
        title=f"{profile.title or profile.name}",
        engines=(profile.name,),
        findings=(
            host.hardware(profile),
            *sees_enough(answers, profile),
            *host.compliance(answers, profile),
            host.budget(answers, profile),
            *host.latency(answers, profile),
            host.crew(),
        ),
        rung="pilot",
    )


def _own_way(answers: Answers, profile: Profile) -> Way:
    is_agentic = bool({"agents", "swarm"} & set(answers.work))
    return Way(
        name=profile.name,
        model="kimi-k2.5",
        hosting="self_hosted",
        title=f"{profile.model or profile.name} on your own GPUs",
        engines=(profile.name,),
        findings=(
            own.hardware(answers, profile),
            *sees_enough(answers, profile),
            *own.compliance(answers, profile),
            own.budget(answers, profile),
            own.latency(answers),
            own.crew(answers),
        ),
        rung="agentic" if is_agentic else "autonomous",
    )


def _hybrid(away: Way, mine: Way) -> Way:
    """Return the way in which sensitive documents stay and the others go to a host."""
    budgets = [one for one in (*mine.findings, *away.findings) if one.topic == "budget"]
    others = [one for one in (*mine.findings, *away.findings) if one.topic != "budget"]
    return Way(
        name=f"{mine.name} and {away.name}",
        model="kimi-k2.5",
        hosting="self_hosted",
        title=f"{mine.title} for what is sensitive, {away.title} for the rest",
        engines=(*mine.engines, *away.engines),
        findings=(*others, *budgets),
        rung="hybrid",
    )


def _small_way(answers: Answers) -> Way:
    has_none = answers.gpus == NO_GPUS
    hardware = Finding(
        topic="hardware",
        holds=not has_none,
        reason=f"a dense model of 8 billion weights in 16 bits takes {_SMALL_GB} GB, so one GPU of 24 GB holds"
        " it" + (", and there is none" if has_none else ""),
        todo="a GPU of 24 GB, for a small dense model"
        if has_none
        else "vLLM with a model of yours, then --engine http://HOST:8000/v1",
    )
    mine = own.compliance(answers, load_profile("embedded"))
    return Way(
        name="small",
        model="small",
        hosting="self_hosted",
        title="a small dense model on one GPU of your own",
        engines=(),
        findings=(
            hardware,
            *small_sees_enough(answers),
            *(one for one in mine if "licence" not in one.reason),
            own.crew(answers),
        ),
        rung="autonomous",
    )


def _proprietary_way(answers: Answers) -> Way:
    wanted = ", ".join(answers.certifications) or "what your auditors ask for"
    sensitive = answers.sensitive == "all"
    return Way(
        name="proprietary",
        model="proprietary",
        hosting="hosted",
        title="a proprietary model at a certified host",
        engines=(),
        findings=(
            Finding(
                topic="compliance",
                holds=False if sensitive else None,
                reason="all documents are sensitive and may not leave"
                if sensitive
                else "no profile of a proprietary host comes along, so nothing is known of its certificates",
                todo="" if sensitive else f"ask for {wanted}, and write a profile with its data_sheet",
            ),
            Finding(
                topic="budget", holds=None, reason="its prices are not known here",
                todo="enter `prices` into its profile",
            ),
            host.crew(),
        ),
        rung="pilot",
    )  # fmt: skip


def _is_allowed(way: Way, answers: Answers) -> bool:
    return (answers.hosting is None or way.hosting == answers.hosting) and (
        answers.model is None or way.model == answers.model
    )


def _rank(way: Way, model: Kind, answers: Answers) -> int:
    """Return how early a way is chosen among those that nothing speaks against."""
    if way.rung == "hybrid":
        return 0
    if way.model == model or (model == NAMED and way.engines):
        # A host first: it is there today, and shows what volume is worth GPUs; but not where nothing may leave.
        is_first = (way.hosting == "self_hosted") == (answers.sensitive == "all")
        return 1 if is_first else 2
    return 3 if way.model == "kimi-k2.5" else 4


def _contradictions(answers: Answers, ways: Sequence[Way]) -> list[Finding]:
    """Return requirements that cannot all be met, one sentence each with what to give up."""
    found = []
    wanted = ", ".join(answers.certifications)
    missing = missing_certifications(answers.certifications, answers.own_certifications)
    hosts = [way for way in ways if way.engines and way.hosting != "self_hosted"]
    certified = [way.name for way in hosts if not _lacks(answers, way)]
    if missing and answers.hosting == "self_hosted":
        found.append(
            Finding(
                topic="compliance",
                holds=False,
                reason=f"certified for {wanted}, and run by yourselves: a certificate belongs to whoever runs the"
                f" machines, Kimi K2.5's weights have none, and yours lack {', '.join(missing)}",
                todo="have your operations certified (own_certifications), or take a certified host"
                + (f": {', '.join(certified)}" if certified else ""),
            )
        )
    if answers.certifications and answers.model == "kimi-k2.5" and missing and not certified:
        names = " and ".join(way.name for way in hosts)
        found.append(
            Finding(
                topic="compliance",
                holds=False,
                reason=f"certified for {wanted}, and Kimi K2.5: the data sheets of {names} have no such"
                " certificate, and your own operations were not named for it",
                todo="ask the hosts, have your operations certified, or take a proprietary model at a host that"
                " is",
            )
        )
    if answers.sensitive == "all" and answers.hosting in {"api", "hosted"}:
        found.append(
            Finding(
                topic="compliance",
                holds=False,
                reason=f"all documents are sensitive, and hosting is {answers.hosting}: nothing may leave, and"
                " everything would",
                todo="hosting self_hosted, or mark only those that are (policy.sensitive)",
            )
        )
    if answers.model == "kimi-k2.5" and (answers.context_tokens or 0) > K25_CONTEXT_TOKENS:
        found.append(
            Finding(
                topic="model",
                holds=False,
                reason=f"Kimi K2.5, and {answers.context_tokens:,} tokens at once: it takes"
                f" {K25_CONTEXT_TOKENS:,}",
                todo=f"{CUT}, or leave the model open",
            )
        )
    if answers.gpus == NO_GPUS and answers.hosting == "self_hosted":
        found.append(
            Finding(
                topic="hardware",
                holds=False,
                reason="self-hosted, and no GPUs: Kimi K2.5 takes 595 GB of GPU memory in INT4 (its"
                " checkpoint's size)",
                todo="rent GPUs, or take a host",
            )
        )
    return found


def _lacks(answers: Answers, way: Way) -> bool:
    held = load_profile(way.engines[0]).data_sheet.certifications
    return bool(missing_certifications(answers.certifications, held))


def _verdict(
    chosen: Way | None, against: Sequence[Finding], able: Sequence[Way], answers: Answers
) -> tuple[State, str]:
    if against:
        return "contradiction", f"not as asked: {against[0].reason}"
    if chosen is None:
        refused = [one for way in able for one in way.findings if one.holds is False]
        if not refused:
            return "no", f"there is no way with model {answers.model} and hosting {answers.hosting}"
        return "no", f"no way that was looked at does: {refused[0].reason}"
    title = chosen.title
    if answers.sensitive == "some" and chosen.hosting != "self_hosted":
        title = f"{title}, for what is not sensitive only"
    if chosen.holds:
        return "go", f"{title}: nothing speaks against it"
    return "open", f"{title}, once what is missing is known"


def _said(findings: Iterable[Finding], *, holds: bool | None) -> list[str]:
    said = (f"{one.topic}: {one.reason}" for one in findings if one.holds is holds)
    return list(dict.fromkeys(said))


def _cautions(chosen: Way) -> list[str]:
    """Return the weaknesses that the data sheets of its engines tell."""
    return [
        f"{engine}: {told}"
        for engine in chosen.engines
        for told in load_profile(engine).data_sheet.weaknesses
    ]


def _next(chosen: Way | None, against: Sequence[Finding], able: Sequence[Way]) -> list[str]:
    """Return what to do, in order: what is missing first, then the rung of the ladder."""
    if against:
        return [one.todo for one in against]
    if chosen is None:
        refused = [one for way in able for one in way.findings if one.holds is False]
        return list(dict.fromkeys(one.todo for one in refused if one.todo))
    todo = [one.todo for one in chosen.findings if one.todo]
    if chosen.engines:
        todo.append(f"headrace plan ladder_{chosen.rung}, then with your source (docs/ladder.md)")
    return list(dict.fromkeys(todo))


def as_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the verdict with the checklist of what was chosen, and one line for each other way."""
    lines = [f"verdict  {found['verdict']}: {found['sentence']}"]
    lines.append(f"model    {found['model']['choice']}: {found['model']['reason']}")
    if found["rung"]:
        lines.append(f"rung     {found['rung']}")
    lines += [f"against  {one['reason']}" for one in found["contradictions"][1:]]
    lines += [f"next     {one}" for one in found["next"]]
    lines += [f"caution  {one}" for one in found["cautions"]]
    for way in found["ways"]:
        if way["way"] == found["choice"]:
            lines += ["", way["title"]]
            lines += [
                f"  {_MARKS[one['holds']]} {one['topic']:<11} {one['reason']}"
                for one in way["checklist"]
            ]
    others = [way for way in found["ways"] if way["way"] != found["choice"]]
    return [
        *lines,
        "",
        "other ways",
        *(f"  {_MARKS[way['holds']]} {_short(way)}" for way in others),
    ]


def _short(way: Mapping[str, Any]) -> str:
    """Return a way with what speaks against it, or is not known of it, first."""
    against = [one for one in way["checklist"] if one["holds"] is way["holds"]]
    told = f": {against[0]['reason']}" if against and way["holds"] is not True else ""
    return f"{way['title']}{told}"
