"""What a run has cost, with all runs that it stands on."""

from collections.abc import Callable, Mapping

from prunegpt_utils.errors import ParameterError

# Parameters that name the runs which a run is made of. A baseline is only compared with.
_MADE_OF = ("model", "init_from", "teacher", "mask_from")


def flops_along_chain(
    run: str, records: Mapping[str, Mapping], resolve: Callable
) -> dict[str, dict[str, int]]:
    """Operations of a run's training and of each training that it stands on, once each.

    A run stands on the one that it goes on from, on its teacher if that was listened to (alpha is
    not 0), on the run whose zeros it took, and on the pretraining of its model where a run of the
    study made that; and so on along the chain. A model that came from elsewhere costs nothing here.

    Args:
        run: name of a run.  records: {name of a run: its record}.
        resolve: (parameter, parameters of a run) -> what is planned of the run that the parameter
            names, or None, such as `expansion.resolver` makes.

    Returns:
        dict: {name of a run: its `flops.training_flops`}; the sum over all is the whole cost.

    Raises:
        ParameterError: a record is not there, or does not say what its training cost.
    """
    found: dict = {}
    waiting = [run]
    while waiting:
        if (name := waiting.pop()) in found:
            continue
        found[name] = _flops(name, records)
        p = records[name]["parameters"]
        refs = [ref for ref in _MADE_OF if p.get(ref) and (ref != "teacher" or p.get("alpha"))]
        waiting += [need.name for ref in refs if (need := resolve(ref, p))]
    return found


def _flops(name, records):
    if name not in records:
        raise ParameterError("run", name, "has no record here, and so its cost is not known")
    if not (flops := records[name]["training"].get("flops")):
        raise ParameterError("run", name, "has a record that does not say what its training cost")
    return flops
