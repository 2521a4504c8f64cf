"""Each way to the mask notices when the other one goes wrong.

Five small templates have what real ones do: a header that the model itself must write (gpt-oss), the next role's token
as the stop (GLM), two stops in a row (Cohere), an empty thought before each answer (Qwen3), and a tokenizer with a
token over the border of prompt and answer. Faults are planted in one way at a time; the other must object.
"""

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from dist_sft.chat import spans, witness
from dist_sft.chat.asking import Asking
from dist_sft.chat.conversation import Conversation, Message
from dist_sft.chat.encode import Encoder
from dist_sft.chat.turns import Turns
from dist_sft.chat.witness import Witness
from dist_sft.config.data import LossWeights
from dist_sft.core.errors import RowError
from tests.chat.test_certificate import unchecked_weights


def template(question, answer, prompt):
    """A Jinja template of two kinds of turns, around Q and A."""
    (ask, asked), (say, said) = question.split("Q"), answer.split("A")
    return (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        f"{{{{ {say!r} + m.content + {said!r} }}}}{{% else %}}{{{{ {ask!r} + m.content + {asked!r} }}}}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {prompt!r} }}}}{{% endif %}}"
    )


QUESTION = "<|im_start|>user\nQ<|im_end|>\n"
HEADER = template(
    QUESTION, "<|im_start|>assistant<|assistant|>final:A<|im_end|>\n", "<|im_start|>assistant"
)  # fmt: skip
NEXT_ROLE = template("<|user|>\nQ", "<|assistant|>\nA", "<|assistant|>\n")
TWO_STOPS = template(
    "<|im_start|><|user|>Q<|im_end|>",
    "<|im_start|><|assistant|>A<|end_of_text|><|im_end|>",
    "<|im_start|><|assistant|>",
)
THOUGHT = template(
    QUESTION, "<|im_start|>assistant\n<think>\n\n</think>\n\nA<|im_end|>\n", "<|im_start|>assistant\n"
)  # fmt: skip
JOINED = template(QUESTION, "<|im_start|>assistant\nA<|im_end|>\n", "<|im_start|>assistant\n")
LEARNED = {
    HEADER: ["<|assistant|>final:Xenon<|im_end|>", "<|assistant|>final:Xylem<|im_end|>"],
    NEXT_ROLE: ["Xenon<|user|>", "Xylem<|user|>"],
    TWO_STOPS: ["Xenon<|end_of_text|><|im_end|>", "Xylem<|end_of_text|><|im_end|>"],
    THOUGHT: ["Xenon<|im_end|>", "Xylem<|im_end|>"],
    JOINED: ["Xenon<|im_end|>", "Xylem<|im_end|>"],
}
NAMES = {HEADER: "header", NEXT_ROLE: "next role", TWO_STOPS: "two stops", THOUGHT: "thought", JOINED: "joined"}
TALK = Conversation(
    (Message("user", "what?"), Message("assistant", "Xenon"), Message("user", "and?"), Message("assistant", "Xylem"))
)


@pytest.fixture(scope="module")
def joining(tiny):
    """With a token that holds a line's end and an X."""
    tokenizer = Tokenizer.from_str(tiny.backend)
    tokenizer.add_tokens([AddedToken("\nX", special=False, normalized=False)])
    return replace(tiny, backend=tokenizer.to_str(), size=tokenizer.get_vocab_size())


@pytest.fixture(params=LEARNED, ids=NAMES.get)
def source(request):
    return request.param


@pytest.fixture
def vocabulary(tiny, joining):
    return lambda source: replace(joining if source == JOINED else tiny, chat_template=source)


def encoder(vocabulary):
    return Encoder(vocabulary, "auto", LossWeights(), 10_000, "error")


def learned(vocabulary):
    """The texts that are learned."""
    shown, texts = False, []
    for piece in encoder(vocabulary).preview(TALK):
        if piece.weight:
            texts = [*texts[:-1], texts[-1] + piece.text] if shown else [*texts, piece.text]
        shown = piece.weight > 0
    return texts


def objection(vocabulary):
    """What the second way has against what the first one makes."""
    maker = encoder(vocabulary)
    return Witness(vocabulary, maker.template, LossWeights()).examine(TALK, maker.encode(TALK)).objection


def test_both_ways_agree_on_what_is_right(vocabulary, source):
    assert learned(vocabulary(source)) == LEARNED[source]
    assert objection(vocabulary(source)) is None


# The first way, broken


def without_stop(monkeypatch):
    original = spans._after_stop
    monkeypatch.setattr(spans, "_after_stop", lambda *given: original(*given) - len("<|user|>"))


def without_second_stop(monkeypatch):
    original = spans._after_stop
    monkeypatch.setattr(spans, "_after_stop", lambda *given: original(*given) - len("<|im_end|>"))


def behind_the_header(monkeypatch):
    monkeypatch.setattr(spans, "_after_opening", lambda talk, i, text, low, high, anatomy: high)


def with_the_prompt(monkeypatch):
    monkeypatch.setattr(spans, "_after_opening", lambda talk, i, text, low, high, anatomy: low)


def one_character_late(monkeypatch):
    original = spans._after_opening
    monkeypatch.setattr(spans, "_after_opening", lambda *given: original(*given) + 1)


def with_what_follows(monkeypatch):
    """Of the turn behind an answer all that stands before its words is learned as well."""
    monkeypatch.setattr(spans, "_after_stop", lambda talk, i, text, low, high, anatomy: high)


def with_an_empty_thought(monkeypatch):
    monkeypatch.setattr(spans, "_after_empty_thought", lambda talk, i, turn, *rest: turn.start)


def late_behind_the_thought(monkeypatch):
    original = spans._after_empty_thought
    monkeypatch.setattr(spans, "_after_empty_thought", lambda *given: original(*given) + 1)


def first_of_the_stops(monkeypatch):
    original = Turns.stops

    def first(self, talk, i):
        found = original(self, talk, i)
        return replace(found, within="<|end_of_text|>", last="<|end_of_text|>", closing="<|end_of_text|>")

    monkeypatch.setattr(Turns, "stops", first)


def over_the_border(monkeypatch):
    monkeypatch.setattr(Encoder, "_straddles", staticmethod(lambda *_: False))


FIRST_WAY = [
    (HEADER, without_second_stop, "the stop token of messages[1] is not learned"),
    (HEADER, behind_the_header, "messages[1] is not learned"),
    (HEADER, with_the_prompt, "the template's own text is learned, and should not be"),
    (HEADER, one_character_late, "messages[1] is not learned"),
    (HEADER, with_what_follows, "is learned, and should not be"),
    (NEXT_ROLE, without_stop, "the stop token of messages[1] is not learned"),
    (NEXT_ROLE, with_the_prompt, "the template's own text is learned, and should not be"),
    (NEXT_ROLE, with_what_follows, "is learned, and should not be"),
    (TWO_STOPS, first_of_the_stops, "the stop token of messages[1] is not learned"),
    (TWO_STOPS, without_second_stop, "the stop token of messages[1] is not learned"),
    (THOUGHT, with_an_empty_thought, "the template's own text is learned, and should not be"),
    (THOUGHT, late_behind_the_thought, "messages[1] is not learned"),
    (JOINED, over_the_border, "a token holds the end of the generation prompt and the start of messages[1]"),
]


@pytest.mark.parametrize(
    ("source", "plant", "what"), FIRST_WAY, ids=lambda each: NAMES.get(each) or getattr(each, "__name__", "")
)
def test_a_fault_of_the_first_way_is_found_by_the_second(vocabulary, source, plant, what, monkeypatch):
    plant(monkeypatch)
    monkeypatch.setattr(Encoder, "_weights", unchecked_weights)
    found = objection(vocabulary(source))
    assert found is not None and what in found.what


def test_what_would_close_the_last_answer_is_missed_by_the_first_way_itself(vocabulary, monkeypatch):
    monkeypatch.setattr(spans, "_closed", lambda talk, found, *rest: found)
    with pytest.raises(RowError, match=r"no stop token <\|user\|> follows messages\[3\]"):
        learned(vocabulary(NEXT_ROLE))


# The second way, broken


def knows_eos_alone(monkeypatch):
    monkeypatch.setattr(Asking, "_all_stops", lambda self, prompt: frozenset({self._eos}))


def knows_no_stop(monkeypatch):
    monkeypatch.setattr(Asking, "_all_stops", lambda self, prompt: frozenset())


def opens_late(monkeypatch):
    original = Asking.openings
    monkeypatch.setattr(Asking, "openings", lambda *given: ((at + 1, opened) for at, opened in original(*given)))


def opens_early(monkeypatch):
    original = Asking.openings
    monkeypatch.setattr(Asking, "openings", lambda *given: ((at - 1, opened) for at, opened in original(*given)))


def wants_nothing(monkeypatch):
    monkeypatch.setattr(Witness, "_wanted", lambda self, item: [0.0] * len(item.messages))


def wants_questions(monkeypatch):
    monkeypatch.setattr(Witness, "_wanted", lambda self, item: [1.0] * len(item.messages))


def finds_no_answer(monkeypatch):
    monkeypatch.setattr(witness, "find_answer", lambda *given, **named: None)


def finds_any_answer(monkeypatch):
    monkeypatch.setattr(witness, "find_answer", lambda body, **named: (len(body), len(body)))


def learns_empty_thoughts(monkeypatch):
    original = witness.find_answer
    monkeypatch.setattr(
        witness, "find_answer", lambda *given, **named: original(*given, **{**named, "learns_nothing_thought": True})
    )


BLIND = (opens_late, wants_nothing, wants_questions, finds_no_answer, finds_any_answer, knows_no_stop)
SECOND_WAY = [
    *((source, plant) for source in LEARNED for plant in BLIND),
    *((source, opens_early) for source in LEARNED if source != THOUGHT),  # there blanks are context before and behind
    (NEXT_ROLE, knows_eos_alone),
    (THOUGHT, learns_empty_thoughts),
]


@pytest.mark.parametrize(
    ("source", "plant"), SECOND_WAY, ids=lambda each: NAMES.get(each) or getattr(each, "__name__", "")
)
def test_a_fault_of_the_second_way_makes_it_object_to_what_is_right(vocabulary, source, plant, monkeypatch):
    plant(monkeypatch)
    assert objection(vocabulary(source)) is not None


# What neither may accept


def only_first(right, other, prompt):
    """A template that opens the first answer as its generation prompt does, and later ones otherwise."""
    opened = f"{{% set opens = {right!r} if loop.index0 < 2 else {other!r} %}}"
    source = template("<|im_start|><|user|>Q<|im_end|>", "OPENSA<|im_end|>\n", prompt).replace(
        "{{ 'OPENS' ", "{{ opens "
    )
    return source.replace("{% for m in messages %}", "{% for m in messages %}" + opened)


@pytest.mark.parametrize(("right", "other"), [
    ("<|im_start|>assistant\n", "<|im_start|>model\n"), ("<|im_start|>assistant\n", "<|im_start|>user\n"),
    ("<|assistant|>", "<|im_start|>assistant\n"), ("<|im_start|><|assistant|>", "<|im_start|><|user|>"),
])  # fmt: skip
def test_an_answer_under_another_header_than_the_generation_prompts_is_refused(tiny, right, other):
    source = only_first(right, other, right)
    whole = encoder(replace(tiny, chat_template=only_first(right, right, right))).encode(TALK)
    assert whole.supervised == 2 * len("Xenon.")
    with pytest.raises(RowError, match=r"messages\[3\] does not follow the generation prompt"):
        encoder(replace(tiny, chat_template=source)).encode(TALK)


def test_the_planted_faults_change_what_is_learned(vocabulary, monkeypatch):
    """Else the objections above would be to something right."""
    for source, plant, _ in FIRST_WAY:
        with monkeypatch.context() as planted:
            whole = encoder(vocabulary(source)).encode(TALK)
            plant(planted)
            planted.setattr(Encoder, "_weights", unchecked_weights)
            broken = encoder(vocabulary(source)).encode(TALK)
        same = np.array_equal(whole.tokens, broken.tokens) and np.array_equal(whole.weights, broken.weights)
        assert not same, (NAMES[source], plant.__name__)
