"""Tokens that a chat template puts around a prompt: by the template, by the server, or as most have."""

import pytest

from config.load import load_surroundings
from engine.local_models import LOCAL_MODELS
from engine.tokens import EstimateCounter
from engine.tokens.chat import CHAT_TOKENS, chat_tokens
from engine.tokens.remote import ServerCounter


@pytest.mark.vllm
def test_template_and_server_say_the_same_of_the_embedded_model(embedded_engine):
    folder = LOCAL_MODELS["embedded"].model_folder(load_surroundings().cache)
    template = folder / "chat_template.jinja"
    server = ServerCounter(embedded_engine.base_url, model=embedded_engine.model, api_key=None)
    assert chat_tokens(embedded_engine.counter, template) == chat_tokens(server, None) == 14
    server.close()


def test_marks_of_a_template_are_counted_when_it_is_there(tmp_path):
    counter, template = EstimateCounter("m"), tmp_path / "chat_template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    plain = chat_tokens(counter, template)
    template.write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}",
        encoding="utf-8",
    )
    assert chat_tokens(counter, template) > plain


@pytest.mark.parametrize("text", [None, "{% for %}"], ids=["missing", "broken"])
def test_usual_number_is_taken_when_the_template_is_of_no_use(tmp_path, text):
    template = tmp_path / "chat_template.jinja"
    if text is not None:
        template.write_text(text, encoding="utf-8")
    assert chat_tokens(EstimateCounter("m"), template) == CHAT_TOKENS
    assert chat_tokens(EstimateCounter("m"), None) == CHAT_TOKENS


def test_usual_number_is_taken_when_the_server_counts_no_chats():
    counter = ServerCounter("http://127.0.0.1:9/v1", model="m", api_key=None)
    assert chat_tokens(counter, None) == CHAT_TOKENS
    counter.close()
