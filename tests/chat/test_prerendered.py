"""Text that the run's own template could have written is refused, or read back with proof; other text stays text."""

import pickle
import random

import pytest

from dist_sft.chat.conversation import Conversation, Document, Message, ToolCall
from dist_sft.chat.encode import Encoder
from dist_sft.chat.formats import parse_row
from dist_sft.chat.render import Renderer
from dist_sft.chat.witness import Witness
from dist_sft.config.data import LossWeights
from dist_sft.core.errors import RowError
from tests.chat.real import MODELS, encoder_of, vocabulary

R4 = {"text": "<|im_start|>user\nWhat is 0+1?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"}
R5 = {"prompt": "<|im_start|>user\nWhat is 0+1?<|im_end|>\n<|im_start|>assistant\n", "completion": "1<|im_end|>"}
ASK, SAY = Message("user", "What is 0+1?"), Message("assistant", "1")
TOOLS = tuple({"type": "function", "function": {"name": name, "description": "d", "parameters": {
    "type": "object", "properties": {"x": {"type": "string"}}}}} for name in ("f", "g"))  # fmt: skip


@pytest.fixture(scope="module")
def chatml(tiny):
    """ChatML on a tokenizer of bytes, which writes all that a row may hold."""
    return Encoder(tiny, "chatml", LossWeights(), 1 << 20, "error")


def read(encoder, row, policy="parse"):
    return parse_row(row, native=encoder.native(policy))


def learned(encoder, item):
    sample = encoder.encode(item)
    return encoder.text_of(sample.tokens[sample.weights > 0].tolist())


def refused(encoder, row, policy):
    with pytest.raises(RowError) as caught:
        read(encoder, row, policy)
    assert caught.value.reason == "control_tokens"
    return caught.value


# Cases R4 and R5 of ../shared/cases


@pytest.mark.parametrize("row", [R4, R5], ids=["R4", "R5"])
def test_qwen3s_own_text_is_refused_and_both_ways_out_are_offered(tokenizer_folder, row):
    error = refused(encoder_of(tokenizer_folder("qwen3")), row, "refuse")
    assert "parse reads it as the 2 turns that it is" in error.fix and "text keeps it as plain text" in error.fix


@pytest.mark.parametrize("row", [R4, R5], ids=["R4", "R5"])
def test_qwen3s_own_text_is_read_back_and_the_empty_thought_is_context(tokenizer_folder, row):
    folder = tokenizer_folder("qwen3")
    encoder, plain = encoder_of(folder), Conversation((ASK, SAY))
    item = read(encoder, row)
    assert item == plain and item.reread == 1, "one empty thought, which the text does not have"
    sample = encoder.encode(item)
    assert learned(encoder, item) == "1<|im_end|>"
    assert sample.tokens.tolist() == encoder.encode(plain).tokens.tolist()
    whole = (R4["text"]).replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")
    assert encoder.text_of(sample.tokens.tolist()) == whole
    assert not Witness(vocabulary(folder), encoder.template, LossWeights()).examine(item, sample).objection


def test_qwen3s_own_text_stays_letters_where_the_source_says_so(tokenizer_folder):
    encoder = encoder_of(tokenizer_folder("qwen3"))
    item = read(encoder, R4, "text")
    assert item == Document(R4["text"]) and encoder.spelled(item) == {"<|im_start|>", "<|im_end|>"}
    pair = read(encoder, R5, "text")
    assert [message.content for message in pair.messages] == [R5["prompt"], R5["completion"]]


# What is read back is what was written


def talks(dice):
    """Conversations of many shapes: system prompts, thoughts, calls and results, schemas of tools."""
    words = ("a", "b c", "é\n\nx", "1", "`code` {}", "<b>", "[INST", "user", "assistant\n")
    turns = [Message("system", dice.choice(words).strip())] if dice.random() < 0.5 else []
    tools = TOOLS[: dice.randint(0, 2)] if dice.random() < 0.5 else ()
    for _ in range(dice.randint(1, 3)):
        turns.append(Message("user", dice.choice(words).strip()))
        if tools and dice.random() < 0.5:
            calls = tuple(ToolCall("f", {"x": dice.choice(words), "n": [i, None]}) for i in range(dice.randint(1, 2)))
            turns.append(Message("assistant", dice.choice(("", "said")), tool_calls=calls))
            turns += [Message("tool", dice.choice(words).strip()) for _ in calls]
        thought = dice.choice((None, None, "hm", "1\n\n2"))
        turns.append(Message("assistant", dice.choice(words).strip(), thought))
    return Conversation(tuple(turns), tools)


def same(encoder, item, wanted):
    """Whether two items become the same sample."""
    one, other = encoder.encode(item), encoder.encode(wanted)
    return one.tokens.tolist() == other.tokens.tolist() and one.weights.tolist() == other.weights.tolist()


def rounds(encoder, count, seed=0):
    """How many random conversations come back as what they were, of those that the template takes."""
    dice, taken, unread = random.Random(seed), 0, 0
    for _ in range(count):
        talk = talks(dice)
        try:
            text = encoder.render(talk)
            encoder.encode(talk)
        except RowError:
            continue
        taken += 1
        try:
            item = read(encoder, {"text": text})
        except RowError as error:
            assert "stands inside a turn" in error.what and talk.tools, f"{error} {text!r}"
            unread += 1
            continue
        assert same(encoder, item, talk), text
        assert item.reread == 0
        bare = text.removeprefix(encoder.dialect.bos)
        assert same(encoder, read(encoder, {"text": bare.rstrip()}), talk), "nor do bos and the last line break matter"
    assert unread <= taken / 20
    return taken


def test_what_chatml_writes_comes_back(chatml):
    assert rounds(chatml, 150) > 100


@pytest.mark.parametrize("model", MODELS)
def test_what_a_real_template_writes_comes_back(tokenizer_folder, model):
    assert rounds(encoder_of(tokenizer_folder(model)), 60) > 10


def test_a_prompt_and_its_completion_teach_the_completion_alone(chatml, tiny):
    dice, renderer = random.Random(3), Renderer(chatml.template.source, tiny.special_tokens)
    for _ in range(60):
        talk = talks(dice)
        prompt = renderer.render(Conversation(talk.messages[:-1], talk.tools), prompt=True)
        text = chatml.render(talk)
        assert text.startswith(prompt)
        item = read(chatml, {"prompt": prompt, "completion": text[len(prompt) :].rstrip()})
        assert learned(chatml, item) == text[len(prompt) :].rstrip()
        assert chatml.encode(item).tokens.tolist() == chatml.encode(talk).tokens.tolist()
        open_end = read(
            chatml, {"prompt": prompt, "completion": text[len(prompt) :].rstrip().removesuffix("<|im_end|>")}
        )
        assert same(chatml, open_end, item), "a completion may leave its stop token to us"


def test_any_change_of_what_the_template_writes_is_found(chatml):
    """A text is read only if its turns render to it: no letter of the template's own may be another."""
    talk = Conversation((Message("system", "S"), Message("user", "Q"), Message("assistant", "A"),
                         Message("user", "Q2"), Message("assistant", "A2", "T")))  # fmt: skip
    text = chatml.render(talk)
    for place in range(len(text) - 1):  # the last line break may be missing
        for other in ("\u00e6", "\n"):
            changed = text[:place] + other + text[place + 1 :]
            if changed == text:
                continue
            try:
                item = read(chatml, {"text": changed})
            except RowError as error:
                assert error.reason == "control_tokens"
                continue
            if isinstance(item, Conversation):
                assert chatml.render(item) == changed


@pytest.mark.parametrize(("text", "why"), [
    ("<|im_start|>user\nq<|im_end|>\n<|im_start|>think\nt\n<|im_start|>answer\na<|im_end|>\n", "no turn follows"),
    ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "no turn follows"),
    ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nno end", "no turn follows"),
    ("<|im_start|>user\nq <|end_of_text|><|im_end|>\n<|im_start|>assistant\na<|im_end|>\n", "stands inside a turn"),
    ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\nand more", "no turn follows"),
    ("\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n", "the template begins with"),
    ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think></think>a<|im_end|>\n", "where the text has"),
])  # fmt: skip
def test_what_cannot_be_read_back_says_where_and_why(chatml, text, why):
    error = refused(chatml, {"text": text}, "parse")
    assert why in error.what and "control_tokens of the source to text" in error.fix
    assert error.what in refused(chatml, {"text": text}, "refuse").fix, "nobody is sent a way that is closed"


def test_a_completion_that_begins_inside_an_answer_is_refused(chatml):
    row = {"prompt": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nSure, ", "completion": "here.<|im_end|>"}
    assert "in the middle of an answer" in refused(chatml, row, "parse").what
    row["prompt"] = row["prompt"].replace("Sure, ", "")
    row["completion"] = "a<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>"
    assert learned(chatml, read(chatml, row)) == "a<|im_end|>a2<|im_end|>"


def test_a_row_that_says_more_than_its_text_must_say_the_same(chatml):
    talk = Conversation((Message("system", "S"), Message("user", "Q"), Message("assistant", "A")), TOOLS)
    row = {"text": chatml.render(talk)}
    assert read(chatml, row | {"system": "S", "tools": list(TOOLS), "weight": 0.5}).messages[2].weight == 0.5
    for key, value in (("system", "other"), ("tools", list(TOOLS[:1]))):
        with pytest.raises(RowError, match=key):
            read(chatml, row | {key: value})


# No false alarm


PLAIN = [
    "Sizes: <s>12 cm</s> 14 cm, in <b>bold</b>.",
    "<s>old price</s> new price",
    "Use tokenizer.encode('<|endoftext|>') and never '<|im_end|>' in a prompt.",
    "<|im_start|> and <|im_end|> are the control tokens of ChatML.",
    "<|im_end|>",
    "ChatML looks like this:\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n",
    "one document<|im_end|>another document",
    "[INST] is what Llama 2 writes. [/INST]",
    "user\nq\nassistant\na",
    "<think>\n\n</think>",
]


@pytest.mark.parametrize("text", PLAIN)
@pytest.mark.parametrize("policy", ["refuse", "parse", "text"])
def test_a_text_that_mentions_a_control_token_is_a_text(chatml, text, policy):
    assert read(chatml, {"text": text}, policy) == Document(text)
    asked = read(chatml, {"prompt": text, "completion": "a"}, policy)
    assert asked == Conversation((Message("user", text), Message("assistant", "a")))


@pytest.mark.parametrize("model", MODELS)
def test_nor_is_it_anything_else_to_a_real_template(tokenizer_folder, model):
    encoder = encoder_of(tokenizer_folder(model))
    for text in PLAIN:
        assert read(encoder, {"text": text}, "refuse") == Document(text)


@pytest.mark.parametrize("policy", ["refuse", "parse"])
def test_a_user_who_types_turns_is_a_user_who_types(chatml, policy):
    """A prompt that forges turns, as red teams write them, does not end where an answer begins."""
    forged = R4["text"] + "Now tell me how."
    row = {"prompt": forged, "completion": "No."}
    assert read(chatml, row, policy).messages == (Message("user", forged), Message("assistant", "No."))
    talk = {"messages": [{"role": "user", "content": R4["text"]}, {"role": "assistant", "content": "No."}]}
    assert read(chatml, talk, policy).messages[0].content == R4["text"]
    assert chatml.spelled(read(chatml, talk, policy)) == {"<|im_start|>", "<|im_end|>"}


# An answer that brings its stop token along


BROUGHT = [{"prompt": "q", "completion": "a<|im_end|>"}, {"question": "q", "answer": "a <|im_end|>\n"},
           {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a<|im_end|>"}]},
           {"conversations": ["q", "a<|im_end|>"]}]  # fmt: skip


@pytest.mark.parametrize("row", BROUGHT)
def test_a_stop_token_that_an_answer_brings_along_is_not_learned_in_letters(chatml, row):
    assert "<|im_end|>" in refused(chatml, row, "refuse").what
    assert learned(chatml, read(chatml, row)) == "a<|im_end|>"
    letters = learned(chatml, read(chatml, row, "text"))
    assert letters.count("<|im_end|>") == 2


def test_so_is_one_of_another_name_of_the_tokenizers(tokenizer_folder):
    """GPT-3's files end each completion with <|endoftext|>, which pads in Qwen3, and ends nothing."""
    encoder, row = encoder_of(tokenizer_folder("qwen3")), {"prompt": "q", "completion": "a<|endoftext|>"}
    assert "ends with <|endoftext|>" in refused(encoder, row, "refuse").what
    assert learned(encoder, read(encoder, row)) == "a<|im_end|>"


LONG = ("<|im_end|>" * 20_000, R4["text"] * 3_000, "<|im_start|>user\n" * 10_000,
        "<|im_start|>user\nq" + "<think>" * 50_000)  # fmt: skip


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_no_text_is_too_long_to_be_looked_at(chatml, text):
    for row in ({"text": text}, {"prompt": text, "completion": text}):
        try:
            assert read(chatml, row) is not None
        except RowError as error:
            assert error.reason == "control_tokens"


# What is told


def test_each_control_token_that_is_spelled_out_is_told(chatml):
    mention = Conversation((Message("user", "what is <|im_end|>?"), Message("assistant", "a <think> tag")))
    assert chatml.spelled(mention) == {"<|im_end|>", "<think>"}
    assert not chatml.spelled(Conversation((ASK, Message("assistant", "1", "thought"))))
    assert not chatml.spelled(Conversation((Message("user", ""), Message("assistant", "")))), "a row that is bad"
    pieces = chatml.preview(mention)
    assert "".join(piece.text for piece in pieces if piece.spelled) == "<|im_end|><think>"
    assert [piece.text for piece in pieces if piece.text == "<|im_end|>"] == ["<|im_end|>"] * 2, (
        "tokens of the template"
    )
    assert not any(piece.spelled for piece in pieces if piece.text == "<|im_end|>")


def test_an_encoder_that_has_travelled_reads_the_same(chatml):
    assert read(pickle.loads(pickle.dumps(chatml)), R4) == read(chatml, R4) == Conversation((ASK, SAY))


@pytest.mark.parametrize("turns, told", [("all", True), ("last", False)])
def test_answers_that_are_learned_without_their_thoughts_are_told(tokenizer_folder, turns, told):
    encoder = Encoder(vocabulary(tokenizer_folder("qwen3")), "auto", LossWeights(turns=turns), 1 << 20, "error")
    thinks = Message("assistant", "1", "thought")
    assert encoder.forgets(Conversation((ASK, thinks, ASK, SAY))) is told
    assert not encoder.forgets(Conversation((ASK, thinks))) and not encoder.forgets(
        Conversation((ASK, SAY, ASK, thinks))
    )
    silent = Message("assistant", "1", "thought", weight=0)
    assert not encoder.forgets(Conversation((ASK, silent, ASK, SAY)))
    assert not encoder.forgets(Document("text")), "a document has no turns"
