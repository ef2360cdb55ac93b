"""What is told of a run while it trains, and when it is given up."""

from compress.errors import InputError
from jaxssl.training.loop import Hook
from jaxssl.training.losses import Sums, means
from jaxssl.training.optimizer import skipped
from jaxssl.training.settings import Training, optimizer, policy
from jaxssl.training.spikes import step_size
from jaxssl.training.step import State
from jaxssl.training.telemetry import Journal, Meter
from jaxssl.training.told import Tell

HOPELESS = 100  # updates skipped in a row after which a run gives up


def log(training: Training, meter: Meter, tell: Tell, journal: Journal | None) -> Hook:
    """Tell losses and rates; give up when every update was skipped for long."""
    rate, spikes = optimizer(training).schedule(), policy(training)

    def told(number: int, state: State, sums: Sums) -> None:
        size = 1.0 if spikes is None else float(step_size(state.spikes, spikes))
        values = means(sums) | {"learning_rate": size * float(rate(number - 1))} | meter.read()
        _give_up(state)
        tell(number, _line(number, values, training.steps))
        if journal:
            journal.write(number, "train", values)

    return told


def _give_up(state: State) -> None:
    _, row = skipped(state.optimizer)
    if int(row) >= HOPELESS:
        raise InputError(
            f"update {int(state.step)}: the last {int(row)} gradients were not finite (limit {HOPELESS}); lower "
            "--learning-rate, or look for what is wrong with the speech"
        )


def _line(number: int, values: dict[str, float], steps: int) -> str:
    left = max(steps - number, 0) / max(values["updates_per_s"], 1e-9)
    words = f"loss {values['loss']:.3f}"
    if (accuracy := values.get("masked_accuracy")) is not None:  # not of distillation
        words += f", masked accuracy {accuracy:.1%}"
    words += f", {values['updates_per_s']:.2f} updates/s, {values['audio_s_per_s']:.0f} s of speech/s"
    if skipped := int(values.get("skipped", 0)):
        words += f", {skipped} updates skipped"
        words += f" ({spikes} for spikes)" if (spikes := int(values.get("spikes", 0))) else ""
    return f"{words}, MFU {values['mfu']:.0%}, {left // 60:.0f}:{left % 60:02.0f} left"
