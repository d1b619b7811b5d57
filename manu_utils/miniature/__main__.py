"""``python -m manu_utils.miniature data|model|retrained``: rebuild the bundled miniature, or the reference of unlearning.

Options: ``--seed N``; model: ``--dense``; retrained: ``--forget-ratio 5|10|15``.
"""

import argparse
from pathlib import Path

from ..benchmark import FORGET_RATIOS, data_dir

RETRAINED = Path("build/retrained")  # not bundled: 8 MB each


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m manu_utils.miniature", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["data", "model", "retrained"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dense", action="store_true", help="model: no sparsity penalty, written to data/tiny_llava_dense")
    parser.add_argument(
        "--forget-ratio", type=int, default=10, choices=FORGET_RATIOS, help="retrained: who is left out (default 10)"
    )
    arguments = parser.parse_args()
    data = data_dir() / "mllmu_mini"
    if arguments.part == "data":
        from .dataset import write_benchmark

        write_benchmark(data, seed=arguments.seed)
        return
    from .build import build, retrain

    if arguments.part == "model":
        build(data, data_dir() / ("tiny_llava_dense" if arguments.dense else "tiny_llava"), seed=arguments.seed,
              dense=arguments.dense)  # fmt: skip
        return
    ratio = arguments.forget_ratio
    retrain(data, data_dir() / "tiny_llava" / "base", RETRAINED / f"forget_{ratio}", forget_ratio=ratio, seed=arguments.seed)


if __name__ == "__main__":
    main()
