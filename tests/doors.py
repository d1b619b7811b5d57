"""The three ways to evaluate, by name: for tests that hold for more than one of them."""

from manu_utils.evaluation.official import evaluate_official
from manu_utils.evaluation.robust import evaluate_robust
from manu_utils.evaluation.tables import evaluate


def evaluate_by(model, processor, sets, protocol="zero-shot", shots=None, **options):
    if protocol == "official":
        return evaluate_official(model, processor, sets, shots, **options)
    given = options if shots is None else options | {"shots": shots}
    return (evaluate_robust if protocol == "robust" else evaluate)(model, processor, sets, **given)
