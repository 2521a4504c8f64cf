"""What a template writes between turns is learned from it, whatever its style: its own text comes back as its turns."""

import re

import pytest

from dist_sft.chat.conversation import Conversation, Message
from dist_sft.chat.dialect import learn
from dist_sft.chat.prerendered import Prerendered
from dist_sft.chat.render import Renderer
from dist_sft.core.errors import RowError

EACH = "{% for m in messages %}"
END = "{% endfor %}"
STYLES = {
    "the next turn's token ends an answer (GLM)": (
        "[gMASK]<sop>" + EACH + "<|{{ m.role }}|>\n{% if m.role == 'assistant' %}<think></think>\n{% endif %}"
        "{{ m.content }}" + END + "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        {},
    ),
    "a text ends otherwise than an answer (Phi)": (
        EACH + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" + END
        + "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        {"eos_token": "<|endoftext|>"},
    ),
    "brackets are no tokens (Llama 2)": (
        EACH + "{% if m.role == 'system' %}{{ bos_token }}<<SYS>> {{ m.content }} <</SYS>>{% elif m.role == 'user' %}"
        "{{ bos_token }}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}" + END,
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "brackets are tokens, and no prompt is generated (Mistral)": (
        "{{ bos_token }}" + EACH + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'system' %}[SYS]{{ m.content }}[/SYS]{% else %} {{ m.content }}{{ eos_token }}"
        "{% endif %}" + END,
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "the prompt opens a thought (Nemotron)": (
        EACH + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and m.reasoning_content %}<think>\n"
        "{{ m.reasoning_content }}\n</think>\n{% elif m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
        "<|im_end|>\n" + END + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        {"eos_token": "<|im_end|>"},
    ),
    "bos, and a system prompt by default": (
        "{{ bos_token }}{% if messages[0].role != 'system' %}<|h|>system<|/h|>\n\nBe good.<|eot|>{% endif %}" + EACH
        + "<|h|>{{ m.role }}<|/h|>\n\n{{ m.content | trim }}<|eot|>" + END
        + "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}",
        {"bos_token": "<|begin|>", "eos_token": "<|eot|>"},
    ),
    "two tokens end an answer (Cohere)": (
        EACH + "<|turn|><|{{ m.role }}|>{{ '<|say|>' if m.role == 'assistant' }}{{ m.content }}"
        "{{ '<|said|>' if m.role == 'assistant' }}<|over|>" + END
        + "{% if add_generation_prompt %}<|turn|><|assistant|><|say|>{% endif %}",
        {},
    ),
}  # fmt: skip
TOKENS = re.compile(r"<\|[^|]+\|>|</?s>|</?think>|\[gMASK\]|<sop>|\[/?SYS\]")
BRACKETS = re.compile(TOKENS.pattern + r"|\[/?INST\]")
TALKS = [
    (Message("user", "q"), Message("assistant", "a")),
    (Message("user", "q\n\nr"), Message("assistant", "a\nb"), Message("user", "Q"), Message("assistant", "A")),
    (Message("system", "s"), Message("user", "q"), Message("assistant", "a"), Message("user", "Q"),
     Message("assistant", "A")),
]  # fmt: skip


@pytest.fixture(params=STYLES)
def style(request):
    """A template, and what reads its text back."""
    source, special = STYLES[request.param]
    renderer, suspect = Renderer(source, special), BRACKETS if "Mistral" in request.param else TOKENS
    dialect = learn(renderer, suspect, special)
    return renderer, {policy: Prerendered(dialect, renderer, suspect, policy) for policy in ("refuse", "parse", "text")}


@pytest.mark.parametrize("turns", TALKS, ids=len)
def test_a_templates_own_text_comes_back(style, turns):
    renderer, native = style
    talk = Conversation(turns)
    text = renderer.render(talk)
    found = native["parse"].reread(text, None)
    assert found == talk and found.reread == 0
    with pytest.raises(RowError, match="would be spelled out"):
        native["refuse"].reread(text, None)
    assert native["text"].reread(text, None) is None


@pytest.mark.parametrize("turns", TALKS, ids=len)
def test_a_prompt_and_what_follows_it_come_back(style, turns):
    renderer, native = style
    text, prompt = renderer.render(Conversation(turns)), renderer.render(Conversation(turns[:-1]), prompt=True)
    if not text.startswith(prompt):  # the prompt opens a thought
        text = prompt + "t\n</think>\n" + turns[-1].content + "<|im_end|>\n"
    found = native["parse"].reread(prompt, text[len(prompt) :])
    assert [turn.content for turn in found.messages] == [turn.content for turn in turns]
    assert [turn.weight for turn in found.messages if turn.role == "assistant"] == [0.0] * (len(turns) // 2 - 1) + [
        None
    ]


@pytest.mark.parametrize("text", [
    "q", "", "<s>old</s> new", "see <|end|> and <|im_end|>", "user: q\nassistant: a", "[INST] q", "<|end|>", "<think>",
    "As <|user|>\nq<|assistant|>\na", "text <|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>",
])  # fmt: skip
def test_other_text_is_none_of_it(style, text):
    _, native = style
    assert native["refuse"].reread(text, None) is None and native["refuse"].reread(text, "a") is None


def test_a_template_that_refuses_everything_has_no_text_of_its_own():
    renderer = Renderer("{{ raise_exception('no') }}", {})
    native = Prerendered(learn(renderer, TOKENS, {}), renderer, TOKENS, "refuse")
    assert native.reread("<|im_start|>user\nq<|im_end|>", None) is None and not native.writes_calls
    assert native.own_stop(Message("assistant", "a<|im_end|>"), "answer") == Message("assistant", "a<|im_end|>")
