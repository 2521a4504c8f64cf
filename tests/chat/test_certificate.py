"""The second way to the mask agrees with the first on real rows, and objects to every kind of wrong mask."""

import random
from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from dist_sft.chat import spans
from dist_sft.chat.certificate import certify
from dist_sft.chat.conversation import Conversation, Document, EncodedSample, Message, ToolCall
from dist_sft.chat.encode import Encoder
from dist_sft.chat.witness import Witness
from dist_sft.config.data import LossWeights
from tests.chat import oracle, real
from tests.chat.real import CHAT_FILES, TOOL_FILES
from tests.chat.test_masks import CHATML, END, TEMPLATES

BUILT_IN = [("qwen3", "chatml"), ("llama3_1", "llama3"), ("smollm2", "chatml")]
REAL = [("qwen3", "auto"), ("llama3_1", "auto"), ("gemma3", "auto"), ("smollm2", "auto"), *BUILT_IN]
PROMPTS = LossWeights(roles={"assistant": 1.0, "user": 0.1, "system": 0.1})
PROMPT_WEIGHT = np.float32(0.1)


def both_ways(vocabulary, template, items, loss=LossWeights(), context_length=1 << 20):  # noqa: B008 (frozen)
    """The certificate of all items, and their outcomes."""
    encoder = Encoder(vocabulary, template, loss, context_length, "truncate")
    outcomes = encoder.encode_batch(items)
    looked, dropped = [], []
    for i, (item, outcome) in enumerate(zip(items, outcomes, strict=True)):
        if isinstance(outcome, EncodedSample):
            looked.append((f"row {i}", item, outcome))
        else:
            dropped.append((outcome.reason, f"row {i}"))
    return certify(Witness(vocabulary, encoder.template, loss), looked, dropped), outcomes


@pytest.mark.registry
@pytest.mark.parametrize(("model", "template"), REAL)
def test_both_ways_agree_on_every_real_row(model, template, tokenizer_folder, shared_data, real_rows):
    items = real.items(shared_data, (*CHAT_FILES, *TOOL_FILES, "lf_c4_demo.jsonl"), real_rows)
    found, outcomes = both_ways(real.vocabulary(tokenizer_folder(model)), template, items)
    assert not found.disagreements
    assert (
        found.rows == len(items)
        and found.agreed == sum(isinstance(one, EncodedSample) for one in outcomes) > 7 * real_rows
    )
    assert found.supervised == sum(one.supervised for one in outcomes if isinstance(one, EncodedSample))
    assert found.stopped == found.answers > 7 * real_rows and found.stop_share == 1
    assert found.coverage["assistant"].share > 0.99  # three answers of fc_dummy_conversation have loss_weight 0
    assert found.coverage["user"].share == 0 < found.coverage["user"].tokens
    assert found.coverage["document"].share == 1
    assert sum(one.rows for one in found.dropped.values()) == len(items) - found.agreed


@pytest.mark.registry
@pytest.mark.parametrize("context_length", [1 << 20, 150])
@pytest.mark.parametrize("loss", [PROMPTS, LossWeights(turns="last", reasoning=False)], ids=["prompts", "last"])
@pytest.mark.parametrize(("model", "template"), [each for each in REAL if each != ("gemma3", "auto")])  # 2 s each
def test_both_ways_agree_under_other_losses_and_where_rows_are_cut(
    model, template, loss, context_length, tokenizer_folder, shared_data
):
    items = real.items(shared_data, ("fc_dummy_conversation.json", "gpteacher_codegen.json", *TOOL_FILES), 10)
    found, outcomes = both_ways(real.vocabulary(tokenizer_folder(model)), template, items, loss, context_length)
    assert not found.disagreements and found.agreed > 15
    cut = [one for one in outcomes if isinstance(one, EncodedSample) and one.cut]
    assert (found.truncated, found.lost) == (len(cut), sum(one.lost for one in cut))
    assert context_length == 150 or not cut


WORDS = ("hello", "ok", " a", "b ", "\n", "\n\n", "assistant", "user", "model", END, "<|im_start|>assistant\n", "q",
         "\t", "e\u0301", "\U0001f600", "\u2028", "<b>x</b>", "<think>", "</think>", "<tool_response>",
         "{{ m }}")  # fmt: skip
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'system' %}"
    "{{ m.content }}{% else %} {{ m.content }} <|im_end|>{% endif %}{% endfor %}"
)
AWKWARD = {**TEMPLATES, "llama 2": LLAMA_2}


@pytest.mark.parametrize("loss", [LossWeights(), LossWeights(reasoning=False, turns="last"), PROMPTS])
@pytest.mark.parametrize("name", AWKWARD)
def test_both_ways_agree_on_awkward_texts(tiny, name, loss):
    dice = random.Random(name)
    items = []
    for _ in range(100):
        turns = [Message("system", "".join(dice.choices(WORDS, k=2)))] if dice.random() < 0.4 else []
        for _ in range(dice.randint(1, 3)):
            thought = "".join(dice.choices(WORDS, k=2)) if dice.random() < 0.1 else None
            for role, reasoning in (("user", None), ("assistant", thought)):
                said = "".join(dice.choices(WORDS, k=3))
                turns.append(Message(role, said, reasoning, weight=dice.choice([None, None, 0.0, 0.5])))
        items.append(Conversation(tuple(turns)))
    vocabulary, agreed = replace(tiny, chat_template=AWKWARD[name]), []
    for length in (10_000, 120):
        found, _ = both_ways(vocabulary, "auto", items, loss, length)
        assert not found.disagreements
        agreed.append(found.agreed)
    assert min(agreed) >= 10


# Wrong masks


TALK = Conversation(
    (
        Message("system", "be kind"),
        Message("user", "who is there?"),
        Message("assistant", "it is I"),
        Message("user", "and who else?"),
        Message("assistant", "nobody at all"),
    )
)
QUESTION = "who is there?"


class Sample:
    """TALK as tokens of a template, to be given wrong weights."""

    def __init__(self, vocabulary, template, item=TALK, loss=LossWeights(), context_length=1000):  # noqa: B008
        self.encoder = Encoder(vocabulary, template, loss, context_length, "truncate")
        self.witness = Witness(vocabulary, self.encoder.template, loss)
        self.item, self.sample = item, self.encoder.encode(item)
        self.learned = np.flatnonzero(self.sample.weights)

    def objection(self, weights=None, tokens=None):
        weights = self.sample.weights if weights is None else weights
        tokens = self.sample.tokens if tokens is None else tokens
        return self.witness.examine(self.item, replace(self.sample, tokens=tokens, weights=weights)).objection

    def with_weight(self, weight, *places):
        weights = self.sample.weights.copy()
        weights[list(places)] = weight
        return weights


SAMPLES = {}


@pytest.fixture(params=["chatml", "roles", "qwen3", "llama3_1", "gemma3", "smollm2"])
def sample(request, tiny, tokenizer_folder):
    name = request.param
    if name not in SAMPLES:
        built_in = name in ("chatml", "roles")
        vocabulary = tiny if built_in else real.vocabulary(tokenizer_folder(name))
        SAMPLES[name] = Sample(vocabulary, name if built_in else "auto")
    return copy(SAMPLES[name])


def test_the_right_mask_is_not_objected_to(sample):
    assert sample.objection() is None


@pytest.mark.parametrize("by", [-1, 1])
def test_a_mask_shifted_by_one_token_is_found(sample, by):
    objection = sample.objection(np.roll(sample.sample.weights, by))
    assert objection and objection.learned != objection.expected


def stops(sample):
    """Where each run of learned tokens ends."""
    return [t for t in sample.learned if t + 1 not in sample.learned]


def test_a_stop_token_that_is_not_learned_is_found(sample):
    for message, stop in zip((2, 4), stops(sample), strict=True):
        objection = sample.objection(sample.with_weight(0, stop))
        assert objection.what == f"the stop token of messages[{message}] is not learned"


def test_a_header_token_that_is_learned_is_found(sample):
    starts = [t for t in sample.learned if t - 1 not in sample.learned]
    for start in starts:
        assert sample.objection(sample.with_weight(1, start - 1)).what.startswith("the template's own text is learned")


def test_the_first_token_of_an_answer_that_is_not_learned_is_found(sample):
    assert sample.objection(sample.with_weight(0, sample.learned[0])).what == "messages[2] is not learned"


def test_what_follows_a_stop_token_and_is_learned_is_found(sample):
    (behind, *_) = (stop + 1 for stop in stops(sample))
    assert sample.objection(sample.with_weight(1, behind)).what.endswith("is learned, and should not be")


def test_a_question_that_is_learned_is_found(sample):
    text, edges = "", []
    for piece in sample.encoder.preview(TALK):
        edges.append(len(text))
        text += piece.text
    begin = text.index(QUESTION)
    inside = [t for t, edge in enumerate(edges) if begin <= edge < begin + len(QUESTION)]
    objection = sample.objection(sample.with_weight(1, *inside))
    assert objection.what == "messages[1] is learned, and should not be" and QUESTION in objection.learned


def test_one_answer_of_several_that_is_not_learned_is_found(sample):
    first, _ = stops(sample)
    only_last = sample.sample.weights * (np.arange(len(sample.sample)) > first)
    assert sample.objection(only_last).what == "messages[2] is not learned"


def test_a_mask_of_zeros_is_found(sample):
    assert sample.objection(sample.sample.weights * 0).what == "messages[2] is not learned"


def test_a_weight_that_is_another_is_found(sample):
    objection = sample.objection(sample.with_weight(0.5, *sample.learned))
    assert objection.what == "messages[2] has the loss weight 0.5, not 1"


def test_answers_in_another_order_are_found(sample):
    turned = replace(TALK, messages=tuple(TALK.messages[i] for i in (0, 1, 4, 3, 2)))
    sample.item = turned
    assert sample.objection().what.startswith(("what stands behind the generation prompt", "no answer like messages"))


def test_a_stop_token_at_the_end_of_a_truncated_answer_is_found(sample):
    whole, kept = sample.sample, stops(sample)[-1] - 1
    cut = replace(whole, tokens=whole.tokens[:kept], weights=whole.weights[:kept], cut=len(whole) - kept)
    sample.sample = cut
    assert sample.objection() is None
    objection = sample.objection(np.append(cut.weights, np.float32(1)), np.append(cut.tokens, whole.tokens[kept + 1]))
    assert objection.what == "a stop token ends messages[4] too early"


def test_a_certificate_counts_what_was_found(tiny):
    talk = Sample(tiny, "chatml")
    stopless = replace(talk.sample, weights=talk.with_weight(0, stops(talk)[0]))
    rows = [("a:1", TALK, talk.sample), ("a:2", TALK, stopless), ("a:3", TALK, replace(stopless, cut=3, lost=2))]
    found = certify(talk.witness, rows, [("overlong", "a:4"), ("overlong", "a:5"), ("bad_json", "a:6")])
    assert (found.rows, found.agreed, found.disagreed, found.truncated, found.lost) == (6, 1, 2, 1, 2)
    assert (found.answers, found.stopped, found.unstopped) == (6, 4, ["a:2", "a:3"])
    assert [one.where for one in found.disagreements] == ["a:2", "a:3"]
    assert found.dropped["overlong"].rows == 2 and found.dropped["overlong"].places == ["a:4", "a:5"]
    assert found.as_dict()["coverage"]["user"] == {"supervised": 0, "tokens": 78, "share": 0.0}
    assert found.supervised == 3 * talk.sample.supervised - 2


# The first way, broken


def answer_later(original):
    def start_one_later(*rest):
        return original(*rest) + 1

    return start_one_later


def one_earlier(original):
    def end(text, *rest):
        return original(text, *rest) - len(END)

    return end


def any_role(original):
    def weights(conversation, loss):
        return tuple(1.0 for _ in conversation.messages)

    return weights


@pytest.mark.parametrize(
    ("part", "broken"),
    [("_after_opening", answer_later), ("_after_stop", one_earlier), ("weights_of", any_role)],
)
def test_a_first_way_that_is_broken_is_found_out(tiny, monkeypatch, part, broken):
    monkeypatch.setattr(spans, part, broken(getattr(spans, part)))
    monkeypatch.setattr(Encoder, "_weights", unchecked_weights)
    found, _ = both_ways(tiny, "chatml", [TALK, TALK])
    assert found.disagreed == 2


def unchecked_weights(self, found):
    """As Encoder._weights, without the proof of the stop token."""
    tokens = found.tokens
    weights = np.zeros(len(tokens.ids), np.float32)
    for span in found.plan.learned:
        first, last = (sum(edge < place for edge, _ in tokens.offsets) for place in (span.start, span.end))
        weights[first:last] = span.weight
    return weights


# Loss weights


def weights_by_text(vocabulary, template, item, loss):
    """The texts of tokens side by side that have the same weight, and that weight, where it is not 0."""
    shown = []
    for piece in Encoder(vocabulary, template, loss, 1000, "error").preview(item):
        if shown and shown[-1][1] == piece.weight:
            shown[-1] = (shown[-1][0] + piece.text, piece.weight)
        else:
            shown.append((piece.text, piece.weight))
    return [(text, np.float32(weight)) for text, weight in shown if weight]


@pytest.mark.registry
@pytest.mark.parametrize("model", ["qwen3", "llama3_1", "gemma3", "smollm2"])
def test_prompts_learned_with_a_weight_of_a_tenth(model, tokenizer_folder):
    vocabulary, stop = real.vocabulary(tokenizer_folder(model)), oracle.STOPS[model]
    assert weights_by_text(vocabulary, "auto", TALK, PROMPTS) == [
        ("be kind", PROMPT_WEIGHT), ("who is there?", PROMPT_WEIGHT), ("it is I" + stop, 1),
        ("and who else?", PROMPT_WEIGHT), ("nobody at all" + stop, 1)]  # fmt: skip


@pytest.mark.registry
@pytest.mark.parametrize("model", ["qwen3", "llama3_1", "gemma3", "smollm2"])
def test_the_weight_of_a_message_beats_its_roles_and_turns_last_beats_both(model, tokenizer_folder):
    vocabulary, stop = real.vocabulary(tokenizer_folder(model)), oracle.STOPS[model]
    own = (None, 0.0, 0.25, 0.75, None)
    talk = replace(TALK, messages=tuple(replace(m, weight=w) for m, w in zip(TALK.messages, own, strict=True)))
    assert weights_by_text(vocabulary, "auto", talk, PROMPTS) == [
        ("be kind", PROMPT_WEIGHT), ("it is I" + stop, 0.25), ("and who else?", 0.75),
        ("nobody at all" + stop, 1)]  # fmt: skip
    last = PROMPTS.model_copy(update={"turns": "last"})
    assert weights_by_text(vocabulary, "auto", talk, last) == [("nobody at all" + stop, 1)]


def test_results_of_tools_can_be_learned_too(tiny):
    call = Message("assistant", "", tool_calls=(ToolCall("look", {"at": "x"}),))
    talk = Conversation((Message("user", "q"), call, Message("tool", "seen"), Message("assistant", "a")))
    loss = LossWeights(roles={"assistant": 1.0, "tool": 0.5})
    called = '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call>'
    assert weights_by_text(tiny, "chatml", talk, loss) == [(called + END, 1), ("seen", 0.5), ("a" + END, 1)]
    assert not both_ways(tiny, "chatml", [talk], loss)[0].disagreements


def test_a_document_is_learned_but_for_its_first_token(tiny):
    loss = LossWeights(roles={"assistant": 0.5})
    found, (sample,) = both_ways(tiny, "chatml", [Document("abc")], loss)
    assert sample.weights.tolist() == [0, 1, 1, 1] and sample.tokens[-1] == tiny.ids[END]
    assert found.agreed == 1 and found.coverage["document"].tokens == 3
    found, (cut,) = both_ways(tiny, "chatml", [Document("abcdef")], loss, 4)
    assert cut.weights.tolist() == [0, 1, 1, 1] and cut.tokens[-1] != tiny.ids[END] and found.agreed == 1


@pytest.mark.parametrize("change", ["weight", "end", "text"])
def test_a_document_that_is_learned_otherwise_is_found(tiny, change):
    document = Sample(tiny, "chatml", Document("abc"))
    if change == "weight":
        objection = document.objection(document.with_weight(0.5, 2))
    else:
        tokens = document.sample.tokens.copy()
        tokens[-1 if change == "end" else 1] = tokens[0]
        objection = document.objection(tokens=tokens)
    assert objection is not None


def test_a_template_of_which_only_the_last_answer_has_a_stop_token_is_found_by_either_way(tiny):
    source = CHATML.replace("<|im_end|>\n' }}", "' + ('<|im_end|>' if loop.last or m.role == 'user' else '') + '\n' }}")
    vocabulary = replace(tiny, chat_template=source)
    found, (outcome,) = both_ways(vocabulary, "auto", [TALK])
    assert outcome.reason == "stop_not_supervised" and found.dropped["stop_not_supervised"].places == ["row 0"]
    whole = Encoder(tiny, "chatml", LossWeights(), 1000, "error").encode(TALK)
    text = Encoder(vocabulary, "auto", LossWeights(), 1000, "error").render(TALK)
    stopless = [t for t in range(len(whole)) if t != stops(Sample(tiny, "chatml"))[0]]
    witness = Witness(vocabulary, Encoder(vocabulary, "auto", LossWeights(), 1000, "error").template, LossWeights())
    taken = replace(whole, tokens=whole.tokens[stopless], weights=whole.weights[stopless])
    assert "it is I\n" in text
    assert witness.examine(TALK, taken).objection.what.startswith("what stands behind the generation prompt is not")
