"""On the run's own rows: exactly the right tokens are learned."""

from dist_sft.chat.certificate import Certificate, certify
from dist_sft.chat.witness import Witness
from dist_sft.data.encoding import EncodedStep
from dist_sft.proofs.proof import Proof
from dist_sft.service.messages import Feed

CHANGE = "look at the row with `dist-sft preview`; change it, or choose another data.template; and report this one"


def certify_masks(feed: Feed, looked: EncodedStep) -> Certificate:
    """Samples as they are trained on, against the rows that they were made of."""
    rows = feed.rows
    witness = Witness(
        rows.encoder.vocabulary,
        rows.encoder.template,
        rows.data.loss,
        may_drop_reasoning=rows.data.reasoning_without_place == "drop",
        template_kwargs=rows.data.template_kwargs,
    )
    samples = (
        (rows.where(id_), rows.parse(id_), sample) for id_, sample in zip(looked.ids, looked.samples, strict=True)
    )
    dropped = ((entry.reason, entry.where) for entry in looked.entries if entry.reason != "truncated")
    return certify(witness, samples, dropped)


def prove_masks(masks: Certificate, of: str = "") -> list[Proof]:
    """That both ways agree, and that every learned answer ends with a learned stop token. of: which rows, for names."""
    on = f"{masks.agreed + masks.disagreed} samples, {masks.supervised} of {masks.tokens} tokens learned"
    first = next((str(one) for one in masks.disagreements), on)
    unstopped = next((f"{where}: a stop token is not learned" for where in masks.unstopped), f"{masks.answers} answers")
    return [
        Proof.measured(f"two ways agree on each learned token{of}", masks.disagreed, 0, first, CHANGE),
        Proof.measured(
            f"every answer's stop token is learned{of}", masks.answers - masks.stopped, 0, unstopped, CHANGE
        ),
    ]
