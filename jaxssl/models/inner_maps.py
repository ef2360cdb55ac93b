"""A model run while its dense maps are listened to, or what they hear is gated."""

from collections.abc import Collection, Mapping

from flax import nnx
from jax import Array

from jaxssl.models.arch import Arch
from jaxssl.models.checks import checked
from jaxssl.models.dense import Dense
from jaxssl.models.keys import Keys
from jaxssl.models.model import Model, Output, Params, check_params, restored


def map_inputs(
    arch: Arch, params: Params, inputs: Array, lengths: Array | None = None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Run the model and return what each dense map was given, for calibration.

    Arguments and errors as `apply`.

    Returns:
        By path (`layers/0/ffn/fc1`), the map's input, (batch, time, *in); and by the same path the valid frames of each
        row, (batch,). Maps that do not run, those of a block without units, are absent.
    """
    return map_products(arch, params, inputs, lengths, of=())[:2]


def map_products(
    arch: Arch, params: Params, inputs: Array, lengths: Array | None = None, *, of: Collection[str]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Run the model as `map_inputs`, and return besides what some maps make of their inputs.

    Returns:
        What `map_inputs` does; and by path, of those maps named that run, the product x · kernel, without bias and
        activation, (batch, time, *out).
    """
    check_params(arch, params)
    inputs = checked(arch, inputs)
    model = restored(arch, params)
    maps = _maps(model)
    for path, dense in maps.items():
        dense.listening, dense.telling = True, path in of
    out = model(inputs, lengths)
    heard = {path: dense.heard[...] for path, dense in maps.items() if hasattr(dense, "heard")}
    products = {path: maps[path].made[...] for path in of if path in heard}
    return heard, {path: _frames_of(path, out) for path in heard}, products


def apply_gated(
    arch: Arch,
    params: Params,
    gates: Mapping[str, Array],
    inputs: Array,
    lengths: Array | None = None,
    *,
    mask: Array | None = None,
    key: Array | None = None,
) -> Output:
    """Run the model with the inputs of some dense maps multiplied by gates; with ones it is `apply`.

    `gates` has by path of a map (`layers/0/ffn/fc2`) an array (batch or 1, time or 1, units), units the map's first
    input axis: heads for `attention/out`. A block without units runs no map and uses no gate. The other arguments and
    errors are those of `apply`.
    """
    check_params(arch, params)
    inputs = checked(arch, inputs)
    model = restored(arch, params)
    maps = _maps(model)
    for path, gate in gates.items():
        maps[path].gate = nnx.Intermediate(gate)
    return model(inputs, lengths, mask=mask, rngs=None if key is None else Keys(key))


def _frames_of(path: str, out: Output) -> Array:
    """Return the valid frames of what the map at a path hears: the projection, one in a layer, or one behind them."""
    first, _, rest = path.partition("/")
    if first == "project":
        return out.features_lengths
    return out.lengths[int(rest.split("/")[0]) + 1] if first == "layers" else out.last_lengths


def _maps(model: Model) -> dict[str, Dense]:
    return {"/".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, Dense)}
