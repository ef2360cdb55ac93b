"""What a compressed model knew before it was trained on, beside the dense model trained as long as it will be."""

from jaxssl.training.corpus import HeldOut


def known_before(heard: HeldOut | None, control: HeldOut | None = None) -> dict[str, float]:
    """Return what a compressed model knew before it was trained on; nothing where it was not asked.

    Args:
        heard: what it made of each held-out utterance.
        control: the same of the dense model trained as long as it will be, paired by utterance; None: unknown.

    Returns:
        `loss_before` with its interval, `accuracy_before`, and, beside the control, `difference_before`.
    """
    if heard is None:
        return {}
    found, ends = heard.summary(), ("", "_low", "_high")
    told = {f"loss_before{end}": found[f"valid_loss{end}"] for end in ends}
    if control is not None:
        above = heard.above(control)
        told |= {f"difference_before{end}": above[f"loss_difference{end}"] for end in ends}
    return {**told, "accuracy_before": found["masked_accuracy"]}
