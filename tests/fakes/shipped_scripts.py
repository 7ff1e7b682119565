"""Scripted models for the pipelines that come along: what they answer follows from what tools returned to them.

They know the questions of the prompts, and nothing of the samples: limits are read in the policy, breaches
are what SQL and programs return, and what a law says is what was found in its lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakes.agent_script import Body, ScriptedCall, ScriptedReply, Transcript

Cells = Mapping[str, str]

_TABLE = re.compile(r"^(d\d+_t\d+): .*\ncolumns: (.*)$", re.MULTILINE)
_DOCUMENT = re.compile(r"^\[(D\d+)\] (\S+)", re.MULTILINE)
_LINE = re.compile(r"^\[(D\d+L\d+)\] (.*)$", re.MULTILINE)


class _Work:
    """The calls that are still to be made, and what those that were made gave."""

    def __init__(self, sent: Transcript) -> None:
        self._answered = sent.answered
        self.missing: list[ScriptedCall] = []

    def ask(self, begins: str, name: str, /, **arguments: Any) -> str | None:
        """Return what a call gave; None where it is still to be made, or went wrong."""
        for call, text in self._answered:
            if (call.name, call.arguments) == (name, arguments) and re.match(begins, text):
                return text
        self.missing.append(ScriptedCall(name, arguments))
        return None

    def rows(self, sql: str) -> list[Cells] | None:
        """Return the rows of a query."""
        text = self.ask(r"\d+ rows?\b", "table_query", sql=sql)
        return None if text is None else _grid(text)

    def lines(self, document: str) -> list[tuple[str, str]] | None:
        """Return all lines of a document with their labels."""
        text = self.ask(r".*\nlines? ", "read", document=document)
        return None if text is None else _LINE.findall(text)


def _grid(text: str) -> list[Cells]:
    lines = text.split("\n\n")[1].splitlines()
    names = lines[0].split(" | ")
    return [dict(zip(names, line.split(" | "), strict=True)) for line in lines[1:]]


def _cited(text: str, quote: str, *labels: str) -> Mapping[str, Any]:
    return {"lines": list(labels), "quote": quote, "text": text}


def _call(calls: Sequence[ScriptedCall]) -> ScriptedReply:
    return ScriptedReply(calls=calls, reasoning="The next thing to find out.")


def _digest(body: Body) -> ScriptedReply | None:
    """Return the first line that a tool asks to be condensed; None where no tool asks."""
    sent = Transcript(body)
    found = _LINE.search(sent.asked)
    if body.get("tools") or found is None:
        return None
    return ScriptedReply(content=f"{found[2]} [{found[1]}]")


@dataclass(frozen=True, kw_only=True)
class _Breach:
    rule: str
    row: Cells
    done: str
    amount: float
    person: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Policy:
    """The rules as they stand in the policy: labels by what the line says, and its limits."""

    lines: Sequence[tuple[str, str]]

    def rule(self, words: str) -> tuple[str, str]:
        """Return label and text of the line with these words."""
        return next((label, text) for label, text in self.lines if words in text)

    def limit(self, words: str) -> int:
        """Return the amount in the line with these words."""
        found = re.search(rf"{words} ([\d,]+)", self.rule(words)[1])
        assert found is not None
        return int(found[1].replace(",", ""))


_RULES = {
    "hotels": "A hotel night may cost",
    "meals": "Meals on a journey are paid up to",
    "approval": "A payment of more than",
    "two_persons": "Nobody approves a payment",
    "paid_once": "An invoice is paid once",
    "suppliers": "A blocked supplier is paid nothing",
}


class Auditor:
    """Reads the policy, tests each rule over all rows, looks the lines up, checks its quotes, answers."""

    def reply(self, body: Body) -> ScriptedReply:
        digest = _digest(body)
        if digest is not None:
            return digest
        work = _Work(Transcript(body))
        answer = self._answer(work)
        return _call(work.missing) if answer is None else answer

    def _answer(self, work: _Work) -> ScriptedReply | None:
        listed = work.ask("Documents ", "documents")
        work.ask(r"\d+ passages?", "search", query="policy approval limit")
        tables = work.ask("Tables ", "tables")
        if listed is None or tables is None:
            return None
        label = next(label for label, path in _DOCUMENT.findall(listed) if "policy" in path)
        work.ask(".", "summarise", document=label, aim="limits and duties of approval")
        lines = work.lines(label)
        if lines is None:
            return None
        policy = _Policy(lines=lines)
        breaches = self._breaches(work, policy, _names(tables))
        if breaches is None:
            return None
        findings = [_finding(breach, policy) for breach in breaches]
        for finding in findings:
            said = finding["what"]
            work.ask(
                r"VERIFIED \[",
                "cite",
                claim=said["text"],
                lines=said["lines"],
                quote=said["quote"],
            )
        if work.missing:
            return None
        worst = max(findings, key=lambda finding: float(finding["amount"]))
        answer = {"summary": worst["what"], "breaches": findings}
        return ScriptedReply(content=json.dumps(answer), reasoning="All rules are tested.")

    def _breaches(
        self, work: _Work, policy: _Policy, names: Mapping[str, str]
    ) -> list[_Breach] | None:
        payments, expenses = names["payment invoice"], names["expense person"]
        nights = policy.limit("may cost")
        meals = policy.limit("paid up to")
        big = policy.limit("more than")
        found = {
            "hotels": work.rows(
                f"SELECT row AS place, amount - {nights} AS beyond FROM {expenses}"
                f" WHERE kind = 'hotel night' AND amount > {nights} ORDER BY place"
            ),
            "meals": work.rows(
                f"SELECT max(row) AS place, sum(amount) - {meals} AS beyond FROM {expenses}"
                f" WHERE kind = 'meals' GROUP BY person, date HAVING sum(amount) > {meals}"
            ),
            "approval": work.rows(
                f"SELECT p.row AS place, p.amount AS beyond FROM {payments} p WHERE p.amount > {big}"
                f" AND NOT EXISTS (SELECT 1 FROM {names['payment approved_by']} a WHERE"
                " a.payment = p.payment AND a.role = 'director' AND a.date < p.date) ORDER BY place"
            ),
            "two_persons": work.rows(
                f"SELECT p.row AS place, p.amount AS beyond FROM {payments} p"
                f" JOIN {names['payment approved_by']} a USING (payment)"
                " WHERE a.approved_by = p.requested_by"
            ),
            "suppliers": work.rows(
                f"SELECT p.row AS place, p.amount AS beyond FROM {payments} p"
                f" LEFT JOIN {names['supplier name']} s USING (supplier)"
                " WHERE s.status IS DISTINCT FROM 'active'"
            ),
            "paid_once": self._paid_twice(work, payments),
        }
        of_table = dict.fromkeys(found, payments) | {"hotels": expenses, "meals": expenses}
        rows = {
            name: work.rows(f"SELECT * FROM {name} ORDER BY row") for name in (payments, expenses)
        }
        if work.missing:
            return None
        return [
            _breach(rule, row, float(one["beyond"]))
            for rule, ones in found.items()
            for one in ones or ()
            for row in rows[of_table[rule]] or ()
            if row["row"] == one["place"]
        ]

    @staticmethod
    def _paid_twice(work: _Work, payments: str) -> list[Cells] | None:
        code = (
            "import re\nseen = set()\n"
            f"for row in {payments}:\n"
            "    key = (row['supplier'], re.sub(r'[^0-9A-Z]', '', row['invoice'].upper()))\n"
            "    if key in seen:\n"
            "        print('again', row['row'], row['amount'])\n"
            "    seen.add(key)\n"
            "print('done')"
        )
        text = work.ask(r"(?s).*done", "python", code=code, tables=[payments])
        if text is None:
            return None
        return [
            {"place": place, "beyond": amount}
            for place, amount in re.findall(r"again (\d+) ([\d.]+)", text)
        ]


def _names(tables: str) -> dict[str, str]:
    """Return the names of tables by their first two columns."""
    found = {}
    for name, columns in _TABLE.findall(tables):
        _, first, second, *_ = re.findall(r'"(\w+)"', columns)
        found[f"{first} {second}"] = name
    return found


def _breach(rule: str, row: Cells, beyond: float) -> _Breach:
    person = row.get("person") or row["requested_by"]
    name = row.get("expense") or row["payment"]
    done = f"{name} of {person} over {row['amount']}"
    return _Breach(rule=rule, row=row, done=done, amount=beyond, person=person)


def _finding(breach: _Breach, policy: _Policy) -> Mapping[str, Any]:
    label, text = policy.rule(_RULES[breach.rule])
    row = breach.row
    cells = [cell for name, cell in row.items() if name not in {"line", "row", "amount"}]
    sentence = f"{breach.done} breaks the rule: {text}"
    return {
        "rule": breach.rule,
        "what": _cited(sentence, ", ".join(cells), row["line"], label),
        "person": breach.person,
        "amount": f"{breach.amount:.2f}",
    }


QUESTIONS = {
    "retention": r"\b(?:\w+) years (?:from|after)|for \w+ years, counted",
    "form": r"electronic form|on paper\.|form is left",
    "place": r"within the Republic|in any country|on servers",
    "penalty": r"\bfined? (?:up to|of|not)|surcharge",
}
"""What a line has in it that answers a question."""
_SOUGHT = {
    "retention": "accounting records kept years",
    "form": "electronic form paper",
    "place": "country place servers abroad",
    "penalty": "fine surcharge penalty",
}
_REPORTED = re.compile(r"^(\w+) \| (.*?) \| (.*?) \| (.*)$", re.MULTILINE)


class Comparer:
    """Orchestrator and readers in one model: the tools of a body say which of them is asked."""

    def reply(self, body: Body) -> ScriptedReply:
        sent = Transcript(body)
        work = _Work(sent)
        is_lead = any(t["function"]["name"] == "assign_task" for t in body.get("tools") or ())
        if not body.get("tools"):
            return self._joined(sent)
        answer = self._lead(work) if is_lead else self._reader(work, sent)
        return _call(work.missing) if answer is None else answer

    def _lead(self, work: _Work) -> ScriptedReply | None:
        listed = work.ask("Documents ", "documents")
        role = "You read one law and report what it says, with labels."
        made = work.ask("created", "create_subagent", name="reader", system_prompt=role)
        if listed is None or made is None:
            return None
        reports = {
            path: work.ask(
                "Report of", "assign_task", agent="reader", prompt=f"Read the law {label} ({path})."
            )
            for label, path in _DOCUMENT.findall(listed)
        }
        if work.missing:
            return None
        found = [
            dict(zip(("question", "label", "jurisdiction", "text"), one, strict=True))
            for report in reports.values()
            for one in _REPORTED.findall(report or "")
        ]
        return ScriptedReply(content=json.dumps(_compared(found)), reasoning="All have reported.")

    def _reader(self, work: _Work, sent: Transcript) -> ScriptedReply | None:
        """Look each question up in the law that the task names; `duties` asks for an object, a swarm for lines."""
        found = re.search(r"Read the law (D\d+)", sent.asked)
        label = found[1] if found else "D1"
        lines = work.lines(label)
        for words in _SOUGHT.values():
            # Nothing found is an answer too.
            work.ask(r"\d+ passages?|Nothing found", "search", query=words, document=label)
        if lines is None:
            return None
        name = lines[0][1].partition(":")[0]
        answers = [
            {"question": question, "label": line, "jurisdiction": name, "text": text}
            for question, pattern in QUESTIONS.items()
            for line, text in [one for one in lines if re.search(pattern, one[1])][:1]
        ]
        for one in answers:
            work.ask(r"VERIFIED \[", "cite", claim=name, lines=[one["label"]], quote=one["text"])
        if work.missing:
            return None
        if found is None:
            return ScriptedReply(content=json.dumps(_duties(answers)), reasoning="That is all.")
        report = "\n".join(" | ".join(one.values()) for one in answers)
        return ScriptedReply(content=report, reasoning="That is all.")

    @staticmethod
    def _joined(sent: Transcript) -> ScriptedReply:
        """Compare the answers that a reduce is shown, one line each."""
        shown = re.findall(r"\[(L\d+)\] duties: (.*)$", sent.asked, re.MULTILINE)
        compared = []
        for question in QUESTIONS:
            lines = [(label, text) for label, text in shown if f"question: {question}" in text]
            if lines:
                text = f"{len(lines)} laws answer on {question}."
                labels = [label for label, _ in lines]
                difference = _cited(text, lines[0][1], *labels)
                compared.append({"question": question, "difference": difference})
        answer = {"comparison": compared}
        return ScriptedReply(content=json.dumps(answer), reasoning="Compared.")


def _duties(answers: Sequence[Mapping[str, str]]) -> Mapping[str, Any]:
    return {
        "jurisdiction": answers[0]["jurisdiction"],
        "duties": [
            {
                "question": one["question"],
                "answer": _cited(one["text"], one["text"], one["label"]),
            }
            for one in answers
        ],
    }


def _compared(found: Sequence[Mapping[str, str]]) -> Mapping[str, Any]:
    names = list(dict.fromkeys(one["jurisdiction"] for one in found))
    said = {(one["jurisdiction"], one["question"]) for one in found}
    by_question = {q: [one for one in found if one["question"] == q] for q in QUESTIONS}
    return {
        "comparison": [
            {
                "question": question,
                "difference": _cited(
                    f"{len(ones)} of {len(names)} laws answer on {question}.",
                    ones[0]["text"],
                    *(one["label"] for one in ones),
                ),
            }
            for question, ones in by_question.items()
        ],
        "answers": [
            {
                "jurisdiction": one["jurisdiction"],
                "question": one["question"],
                "answer": _cited(one["text"], one["text"], one["label"]),
            }
            for one in found
        ],
        "gaps": [
            {"jurisdiction": name, "question": question}
            for name in names
            for question in QUESTIONS
            if (name, question) not in said
        ],
    }
