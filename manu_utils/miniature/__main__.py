"""``python -m manu_utils.miniature data|model [--seed N] [--dense]``: rebuild the bundled miniature."""

import argparse

from ..benchmark import data_dir


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m manu_utils.miniature", description=__doc__)
    parser.add_argument("part", choices=["data", "model"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dense", action="store_true", help="model: no sparsity penalty, written to data/tiny_llava_dense")
    arguments = parser.parse_args()
    if arguments.part == "data":
        from .dataset import write_benchmark

        write_benchmark(data_dir() / "mllmu_mini", seed=arguments.seed)
        return
    from .build import build

    name = "tiny_llava_dense" if arguments.dense else "tiny_llava"
    build(data_dir() / "mllmu_mini", data_dir() / name, seed=arguments.seed, dense=arguments.dense)


if __name__ == "__main__":
    main()
