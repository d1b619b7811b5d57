"""``python -m manu_utils.miniature data|text|bottles|model|retrained``: rebuild the miniature.

Options: ``--seed N``; model: ``--dense``; retrained: ``--forget-ratio 5|10|15``; the models:
``--device cuda``.
"""

import argparse

from ..benchmark.records import FORGET_RATIOS
from ..paths import data_dir


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m manu_utils.miniature", description=__doc__.splitlines()[0]
    )
    parser.add_argument("part", choices=["data", "text", "bottles", "model", "retrained"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dense",
        action="store_true",
        help="model: from the bundled base, without the sparsity penalty, into build/dense",
    )
    parser.add_argument(
        "--forget-ratio",
        type=int,
        default=10,
        choices=FORGET_RATIOS,
        help="retrained: who is left out (default 10)",
    )
    device = "model, retrained: such as cuda, there in float32, too (default cpu)"
    parser.add_argument("--device", default="cpu", help=device)
    arguments = parser.parse_args()
    data, models, seed = data_dir() / "mllmu_mini", data_dir() / "tiny_llava", arguments.seed
    if arguments.part == "data":
        from .dataset import write_benchmark, write_strangers

        write_benchmark(data, seed=seed)
        write_strangers(data.with_name(f"{data.name}_strangers"), seed=seed)
        return
    if arguments.part == "text":
        from .poems import write_poems
        from .text_world import write_text_world

        write_text_world(data_dir(), seed=seed)
        write_poems(data_dir(), seed=seed)
        return
    if arguments.part == "bottles":
        from .bottles import write_bottles
        from .bottles_model import build_models

        write_bottles(data_dir() / "bottles_mini", seed=seed)
        build_models(data_dir() / "bottles_llava", seed=seed)
        return
    import torch

    from .build import DENSE, build, fine_tune_plainly, retrained_folder

    torch.backends.cudnn.allow_tf32 = False  # of convolutions; products of matrices are float32
    options = {"seed": seed, "device": arguments.device}
    if arguments.part == "retrained":
        ratio = arguments.forget_ratio
        folder = retrained_folder(models, ratio)
        fine_tune_plainly(data, models / "base", folder, forget_ratio=ratio, **options)
    elif arguments.dense:
        fine_tune_plainly(data, models / "base", DENSE, forget_ratio=None, **options)
    else:
        build(data, models, **options)


if __name__ == "__main__":
    main()
