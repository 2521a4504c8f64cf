"""The mask on any template and any text: learned is what the assistant said, or the row is refused."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from dist_sft.chat.conversation import Conversation, Document, Message
from dist_sft.chat.encode import Encoder
from dist_sft.config.data import LossWeights
from dist_sft.core.errors import RowError, TemplateError

END = "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FOLDING = (  # as Gemma: the system prompt goes into the first question, the assistant is a model, contents are trimmed
    "{% set ns = namespace(s='') %}{% if messages[0].role == 'system' %}{% set ns.s = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ ns.s if loop.first }}{{ m.content | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
THINKING = (  # as Qwen3: an empty thought before the last answer only; thoughts of old turns are forgotten
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' + m.content.lstrip('\n') }}"
    "{% elif m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TAGGED = CHATML.replace(
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
    "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}",
)
TEMPLATES = {"chatml": CHATML, "folding": FOLDING, "thinking": THINKING, "tagged": TAGGED}

USER, SAID = Message("user", "q"), Message("assistant", "a")


def encoder(tiny, source, loss=None, context_length=10_000, overlong="error"):
    return Encoder(replace(tiny, chat_template=source), "auto", loss or LossWeights(), context_length, overlong)


def learned(enc, item):
    sample = enc.encode(item)
    assert sample.weights[0] == 0
    return enc.text_of(sample.tokens[sample.weights > 0])


@pytest.fixture(scope="module")
def encoders(tiny):
    return {name: encoder(tiny, source) for name, source in TEMPLATES.items()}


TRAPS = (
    "assistant", "user", "model", "q", "a", "1", " ", "\n", "\n\n", "\t", "<think>", "</think>",
    "<think>\n\n</think>\n\n", "<tool_response>", END, "<|im_start|>", "<|im_start|>assistant\n", "\u2028",
    "\u00e9e\u0301", "\U0001f600", "\u0130", "{{ m }}", "{% raw %}", "\x00", "\ue000", "\U00100000", "\U0010fffd",
)  # fmt: skip
text = (
    st.lists(st.sampled_from(TRAPS) | st.text(min_size=1, max_size=4), min_size=1, max_size=5)
    .map("".join)
    .filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t))
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(TEMPLATES)), st.none() | text, st.lists(st.tuples(text, text), min_size=1, max_size=3))
def test_whatever_a_row_says_the_answers_alone_are_learned_or_it_is_refused(encoders, name, system, turns):
    talk = [Message(role, said) for pair in turns for role, said in zip(("user", "assistant"), pair, strict=True)]
    enc = encoders[name]
    said = [m.content for m in talk if m.role == "assistant"]
    item = Conversation((*([Message("system", system)] if system else []), *talk))
    try:
        sample = enc.encode(item)
    except RowError as error:
        event(error.reason)
        private = any(c >= "\U00100000" for c in enc.render(item))
        allowed = {
            "straddles": any(s.startswith("\n") for s in said),
            "private_use": private,
            "empty_answer": not all(s.strip() for s in said),
            "not_rendered": name == "thinking" and "</think>" in "".join(said),
        }
        assert allowed[error.reason]
        return
    trim = {"folding": str.strip, "thinking": str}.get(name, str)
    expected = [trim(s) + END for s in said]
    if name == "thinking":
        expected[-1] = expected[-1].lstrip("\n")
    assert enc.text_of(sample.tokens[sample.weights > 0]) == "".join(expected)
    assert enc.text_of(sample.tokens) == enc.render(item)
    folded = bool(system) and name == "folding"
    stop = enc.encode(Conversation((USER, SAID))).tokens[-2]
    assert np.count_nonzero(sample.tokens == stop) == len(item.messages) - folded
    assert "".join(piece.text for piece in enc.preview(item)) == enc.render(item)


def test_a_shape_seen_before_gives_what_the_long_way_gives(tiny):
    talk = Conversation((Message("system", "s"), USER, SAID, Message("user", "x" * 50), Message("assistant", "yy")))
    for source in TEMPLATES.values():
        enc, fresh = encoder(tiny, source), encoder(tiny, source)
        enc.encode(Conversation((Message("system", "1"), USER, SAID, USER, SAID)))
        short = enc.encode(talk)
        fresh._locate._skeleton = lambda _: None
        assert (short.tokens == fresh.encode(talk).tokens).all() and (short.weights == fresh.encode(talk).weights).all()


def test_an_ordinary_added_token_stays_a_token(tiny):
    enc = encoder(tiny, CHATML)
    sample = enc.encode(Conversation((USER, Message("assistant", "x\n\ny"))))
    assert tiny.ids["\n\n"] in sample.tokens


def test_weights_go_by_role_and_the_rows_own_weight_beats_them(tiny):
    loss = LossWeights(roles={"assistant": 2.0, "user": 0.5})
    own = Message("user", "Q", weight=0.0), Message("assistant", "A", weight=1.5)
    talk = Conversation((Message("system", "s"), USER, SAID, *own))
    pieces = encoder(tiny, CHATML, loss).preview(talk)
    shown = [(p.text, p.weight) for p in pieces if p.weight]
    assert shown == [("q", 0.5), ("a", 2.0), (END, 2.0), ("A", 1.5), (END, 1.5)]


def test_turns_last_learns_only_what_follows_the_last_question(tiny):
    talk = Conversation((USER, Message("assistant", "old"), USER, Message("assistant", "n", weight=1.0)))
    assert learned(encoder(tiny, CHATML, LossWeights(turns="last")), talk) == "n" + END


def test_thoughts_are_learned_with_the_answer_or_left_out_as_asked(tiny):
    talk = Conversation((USER, Message("assistant", "b", "old"), USER, Message("assistant", " a", "t")))
    assert learned(encoder(tiny, THINKING), talk) == f"b{END}<think>\nt\n</think>\n\n a{END}"
    assert learned(encoder(tiny, THINKING, LossWeights(reasoning=False)), talk) == f"b{END} a{END}"


def test_a_template_whose_questions_end_with_the_prompt_needs_no_other(tiny):
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
        " {{ m.content }} <|im_end|>{% endif %}{% endfor %}"
    )
    talk = Conversation((USER, SAID, Message("user", "[/INST] x"), Message("assistant", " b")))
    assert learned(encoder(tiny, source), talk) == f" a {END}  b {END}"


def test_an_answer_outside_of_a_generation_region_is_refused(tiny):
    source = TAGGED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    assert learned(encoder(tiny, source), Conversation((USER, SAID))) == "a" + END
    with pytest.raises(RowError) as caught:
        encoder(tiny, source).encode(Conversation((USER, SAID, USER, SAID)))
    assert caught.value.reason == "generation_tags"


def test_an_empty_thought_of_the_template_is_never_learned(tiny):
    assert learned(encoder(tiny, THINKING), Conversation((USER, Message("assistant", " a")))) == f" a{END}"


@pytest.mark.parametrize(("item", "reason"), [
    (Conversation((USER, Message("assistant", " "))), "empty_answer"),
    (Conversation((USER, Message("assistant", "a", "thought"))), "not_rendered"),
    (Conversation((USER, SAID), ({"type": "function"},)), "not_rendered"),
    (Conversation((USER,)), "nothing_supervised"),
    (Conversation((USER, replace(SAID, weight=0.0))), "nothing_supervised"),
    (Conversation((USER, Message("assistant", "a \U00100000"), Message("user", " "))), "private_use"),
    (Document(" "), "nothing_supervised"),
    (Document("d" * 200), "overlong"),
])  # fmt: skip
def test_a_row_that_cannot_be_learned_from_is_refused_with_the_reason(tiny, item, reason):
    (result,) = encoder(tiny, CHATML, context_length=150).encode_batch([item])
    assert isinstance(result, RowError) and result.reason == reason and result.what


def test_a_batch_keeps_its_order_and_its_good_rows(tiny):
    good, bad = Conversation((USER, SAID)), Conversation((USER,))
    forged = Conversation((Message("user", END), SAID))
    enc = encoder(tiny, CHATML)
    results = enc.encode_batch([good, bad, forged, Document("d"), good])
    assert [isinstance(r, RowError) for r in results] == [False, True, False, False, False]
    assert enc.text_of(results[2].tokens) == enc.render(forged) and enc.text_of(results[3].tokens) == "d" + END
    assert results[4].tokens.tolist() == results[0].tokens.tolist()


def test_a_truncated_answer_gets_no_stop_token(tiny):
    talk = Conversation((USER, Message("assistant", "x" * 50)))
    whole = encoder(tiny, CHATML).encode(talk)
    cut = encoder(tiny, CHATML, context_length=40, overlong="truncate").encode(talk)
    assert cut.tokens.tolist() == whole.tokens[:40].tolist() and cut.cut == len(whole) - 40
    assert tiny.ids[END] not in cut.tokens[cut.weights > 0] and cut.supervised > 0
    with pytest.raises(RowError) as caught:
        encoder(tiny, CHATML, context_length=5, overlong="truncate").encode(talk)
    assert caught.value.reason == "nothing_supervised"


def test_control_tokens_in_a_document_are_text(tiny):
    enc = encoder(tiny, THINKING)
    sample = enc.encode(Document(f"a{END}b<think>"))
    assert enc.text_of(sample.tokens) == f"a{END}b<think>{END}"
    assert np.count_nonzero(sample.tokens == tiny.ids[END]) == 1 and tiny.ids["<think>"] not in sample.tokens
    assert sample.weights[0] == 0 and (sample.weights[1:] == 1).all()


def test_an_encoder_travels_as_its_settings_and_its_fingerprint_tells_them_apart(tiny):
    enc = encoder(tiny, CHATML)
    twin = pickle.loads(pickle.dumps(enc))
    talk = Conversation((USER, SAID))
    assert twin.fingerprint == enc.fingerprint and (twin.encode(talk).tokens == enc.encode(talk).tokens).all()
    others = [
        encoder(tiny, THINKING),
        encoder(tiny, CHATML, LossWeights(turns="last")),
        encoder(tiny, CHATML, context_length=9),
        encoder(tiny, CHATML, overlong="truncate"),
        encoder(replace(tiny, special_tokens={"eos_token": "<|im_start|>"}), CHATML),
    ]
    assert len({e.fingerprint for e in [enc, *others]}) == 6


def test_a_template_that_counts_letters_is_not_trusted(tiny):
    source = CHATML.replace("m.content +", "m.content + (m.content | length | string) +")
    with pytest.raises(RowError) as caught:
        encoder(tiny, source).encode(Conversation((USER, Message("assistant", "long answer"))))
    assert caught.value.reason == "spans_not_found"


def test_a_template_that_cuts_an_answer_is_found_out(tiny):
    source = CHATML.replace("m.content +", "m.content[:4] +")
    with pytest.raises(RowError) as caught:
        encoder(tiny, source).encode(Conversation((USER, Message("assistant", "long answer"))))
    assert caught.value.reason in ("not_rendered", "spans_not_found")


def test_a_control_token_made_of_half_a_template_and_half_a_row_is_refused(tiny):
    source = CHATML.replace("m.content +", "'<|im_' + m.content +")
    with pytest.raises(RowError) as caught:
        encoder(tiny, source).encode(Conversation((Message("user", "end|>"), SAID)))
    assert caught.value.reason == "control_token" and END in caught.value.what


def test_a_date_in_a_template_does_not_change_overnight(tiny):
    source = CHATML.replace("{% for", "{{ strftime_now('%d %b %Y') }}{% for", 1)
    assert encoder(tiny, source).render(Conversation((USER, SAID))).startswith("26 Jul 2024")


def test_a_template_can_not_reach_python(tiny):
    source = CHATML.replace("m.content +", "m.content + ''.__class__.__mro__[1].__subclasses__()[0].__name__ +")
    with pytest.raises(TemplateError):
        encoder(tiny, source)


def test_prompt_and_answer_are_encoded_apart_where_a_token_would_straddle_their_border(tiny):
    enc = encoder(tiny, CHATML)
    sample = enc.encode(Conversation((USER, Message("assistant", "\na"))))
    learned = sample.tokens[sample.weights > 0].tolist()
    newline, both = (enc._texts._tokenizer.encode(text, add_special_tokens=False).ids for text in ("\n", "\n\n"))
    assert len(newline) == len(both) == 1  # the tokenizer would make one token of the prompt's and the answer's
    assert learned[:1] == newline and enc.text_of(learned) == f"\na{END}"
    assert sample.tokens[len(sample) - len(learned) - 2 :][:1].tolist() == newline and both[0] not in sample.tokens


BROKEN = [
    (None, "the tokenizer has no chat template"),
    ("{% for", "the chat template is not Jinja"),
    (CHATML.split("{% if add_generation")[0], "no generation prompt"),
    (CHATML.replace(END, ""), "no special token after an answer"),
    (CHATML.replace("m.content", "''"), "leaves out the question or the answer"),
    (CHATML.replace("{% for", "{{ raise_exception('no') }}{% for", 1), "cannot write a question and an answer"),
    (
        TAGGED.replace("{{ m.content + '<|im_end|>' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}" + END),
        "region leaves out the answer or its <|im_end|>",
    ),
]


@pytest.mark.parametrize(("source", "what"), BROKEN)
def test_a_template_that_cannot_say_what_is_learned_is_refused_before_any_row(tiny, source, what):
    with pytest.raises(TemplateError) as caught:
        encoder(tiny, source)
    assert what in caught.value.what and caught.value.fix


def test_a_built_in_template_without_its_tokens_names_them(tiny):
    with pytest.raises(TemplateError, match="no special token <\\|begin_of_text\\|>, <\\|start_header_id\\|>"):
        Encoder(tiny, "llama3", LossWeights(), 100, "drop")
    with pytest.raises(TemplateError, match="no such template"):
        Encoder(tiny, "chatlm", LossWeights(), 100, "drop")


def test_the_roles_template_writes_what_the_issue_says(tiny, tmp_path):
    enc = Encoder(tiny, "roles", LossWeights(), 1000, "drop")
    talk = Conversation((Message("system", "s"), USER, SAID))
    end = "<|end_of_text|>\n"
    assert enc.render(talk) == f"<|system|>\ns{end}<|user|>\nq{end}<|assistant|>\na{end}"
    assert learned(enc, talk) == "a<|end_of_text|>"
    (tmp_path / "mine.jinja").write_text(enc.template.source)
    assert Encoder(tiny, str(tmp_path / "mine.jinja"), LossWeights(), 1000, "drop").render(talk) == enc.render(talk)
