"""Do the tests see a wrong line?

Change one line of a copy of the package, run the tests, and see whether one fails.

The list below is written by hand: changes that a tired author might make, each of which gives wrong
numbers. A change is *killed* when a test fails (or does not end), and *survives* when all pass. The
working tree is never touched. Needs ``fork`` (Linux, macOS), so that torch is loaded once and not
for every change.

Results are kept in build/mutants.json, so that a run that was stopped goes on. A change that was
killed is tried again when its module or the test that killed it changes; one that survived, when
anything does.
"""

import argparse
import ast
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "mutants.json"
MIN_KILLED = 0.95
SECONDS = 900  # for the tests of one change; who takes longer does not end


class Mutation(NamedTuple):
    module: str  # of manu_utils, such as unlearning.pruning
    old: str  # in its source exactly once
    new: str
    wrong: str  # why, in a word
    tests: tuple[str, ...]  # files in tests/ that could see it, cheap ones first

    @property
    def name(self) -> str:
        return (
            f"{self.module}: {' '.join(self.old.split())} -> "
            f"{' '.join(self.new.split()) or '(nothing)'}"
        )


def _of(module: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    return [
        Mutation(module, *change, tuple(f"test_{name}.py" for name in tests.split()))
        for change in changes
    ]


# What was once changed without any test noticing. Never take one of these out.
ONCE_UNSEEN = [
    *_of("unlearning.evidence", "pruning evidence",
        ('reduce=of == "retain"', 'reduce=False', 'set'),
        ('forget, self.attribution("retain"), **options)',
         'forget, self.attribution("forget"), **options)', 'cost'),
        ('mlps=self.mlps, seed=seed, **options)', 'mlps=self.mlps, **options)', 'seed'),
    ),
    *_of("unlearning.coverage", "pruning",
        ("with prune_neurons(model, selected) if selected.any() else nullcontext():",
         "with nullcontext():", "stale"),
    ),
    *_of("unlearning.pruning", "pruning editing",
        ("                self.undo()\n", "                pass\n", "left"),
    ),
    *_of("unlearning.pruning", "pruning",
        ("        changes.remove(self._change)\n        self._saved = []\n", "", "twice"),
    ),
    *_of("unlearning.baselines", "baselines",
        ("vanilla = copy.deepcopy(model, same)", "vanilla = model", "reference"),
        ("reference is not None and reference is not model", "reference is not None", "reference"),
    ),
    *_of("unlearning.objectives", "baselines",
        ("vanilla, _, _ = answer_logits(frozen, batch)",
         "vanilla, _, _ = answer_logits(model, batch)", "reference"),
        ("before = log_likelihoods(*answer_logits(frozen, batch))",
         "before = log_likelihoods(*answer_logits(model, batch))", "reference"),
    ),
    *_of("evaluation.answers_file", "resume evaluation",
        ('"images": images,', '"images": [],', "key"),
    ),
    *_of("models.asking", "resume evaluation",
        (", processor.tokenizer.eos_token_id}", "}", "ends"),
    ),
    *_of("evaluation.answers_file", "resume",
        ('[digests[id(image)] for image in own.get("images", ())]', "[]", "key"),
        ("if all(key in known", "if any(key in known", "half"),
    ),
    *_of("models.encoding", "activations architectures",
        ('mask[:, :-1] = batch["answer_mask"][:, 1:]',
         'mask[:, 1:] = batch["answer_mask"][:, 1:]', "shifted"),
    ),
    *_of("unlearning.attribution", "attribution",
        ("for token in set(ids)", "for token in ids", "tf"),
    ),
    *_of("unlearning.coverage", "attribution",
        ("(size - facts[:, selected].sum(1)).clamp(min=0)", "size.clone()", "whole"),
    ),
    *_of("models.encoding", "batches activations",
        ('answer_start(part, whole)', 'len(part)', 'border'),
    ),
    *_of("models.training", "training baselines",
        ("        model.train()\n        return seen", "        return seen", "mode"),
    ),
    *_of("models.precision", "training baselines",
        ("return torch.autocast(device.type, enabled=False)",
         "return torch.autocast(device.type, dtype=torch.bfloat16)", "rounding"),
    ),
    *_of("unlearning.scores", "importance",
        ('{"eps": eps} if variant == "paper"', '{} if variant == "paper"', "epsilon"),
    ),
]  # fmt: skip

OTHERS = [
    *_of("unlearning.importance", "importance",
        ("multimodal.total_abs / multimodal.counts(), text.total_abs / text.counts()",
         "multimodal.total_abs, text.total_abs", "sums"),
        ("one, other = multimodal.n_active, text.n_active",
         "one, other = multimodal.n_active / multimodal.counts(), text.n_active / text.counts()",
         "shares"),
        ("(variance(multimodal) + variance(text)).sqrt()",
         "variance(multimodal) + variance(text)", "units"),
        ("((one - other).abs() / (one + other + eps)).sqrt()",
         "(one - other).abs() / (one + other + eps)", "root"),
        ("(statistics.total / n) ** 2", "(statistics.total_abs / n) ** 2", "mean"),
    ),
    *_of("unlearning.scores", "importance",
        ("r + floor * mean + eps", "r + floor + eps", "units"),
        ("for m in forget]).amax(0)", "for m in forget]).amin(0)", "smaller"),
        ("for linear in mlp.before]).prod(0)", "for linear in mlp.before]).sum(0)", "sum"),
        ("norm(mlp.after.weight, 0)", "norm(mlp.after.weight, 1)", "axis"),
        ("torch.where(sees, one, other)", "torch.where(sees, other, one)", "tower"),
        ("- last_layers for mlp in mlps", "- last_layers - 1 for mlp in mlps", "layer"),
        ("statistics.tokens[members].sum()", "statistics.tokens[members].amax()", "pool"),
        ("s.modality != modality]", "False]", "unchecked"),
    ),
    *_of("unlearning.activations", "activations architectures",
        ("(magnitude - tau)", "(z - tau)", "sign"),
        (".sign_().clamp_(min=0)", ".sign_().add_(1).clamp_(max=1)", "strict"),
        ("        predicts &= ~batch[\"answer_mask\"]\n", "        pass\n", "all"),
        ("row[begins].bincount()", "row.bincount()", "tokens"),
        ("begins[1:] = question[1:] != question[:-1]", "begins[1:] = row[1:] != row[:-1]", "row"),
        ("z.shape[1] * reading.n_questions", "z.shape[1] * len(reading.sharing)", "count"),
        ("z if z.dtype == torch.float64 else z.float()", "z", "overflow"),
        (".clamp(min=1).double()", ".double()", "zero"),
        ('can_share(model) and positions != "all"', "can_share(model)", "shared"),
        ("Statistics(self.tokens + other.tokens,", "Statistics(self.tokens,", "count"),
        ("magnitude.sum(-2), (z * z).sum(-2)",
         "magnitude.sum(-2), (magnitude * z).sum(-2)", "sign"),
    ),
    *_of("unlearning.pruning", "pruning",
        ("order.values > -torch.inf", "order.values >= -torch.inf", "closed"),
        ("descending=True, stable=True", "descending=False, stable=True", "lowest"),
        ("int(mlp.tower == \"language\") for mlp", "0 for mlp", "tower"),
        ("for tensor in (linear.weight, linear.bias)", "for tensor in (linear.weight,)", "bias"),
        ("if any(change.in_place() for change in later):", "if False:", "order"),
        ("self.left is None or self.left ==", "True or self.left ==", "reset"),
        ("used = used | linear.weight.detach().any(1)", "pass", "silent"),
        ("values.to(parameter))", "torch.zeros_like(values).to(parameter))", "lost"),
    ),
    *_of("models.neurons", "pruning",
        ('return max(1, round(alpha / 100 * n))', 'return max(1, int(alpha / 100 * n))', 'floor'),
    ),
    *_of("unlearning.coverage", "pruning",
        ("facts[modality][~alive] = 0", "facts[modality][alive] = 0", "inverted"),
        ("budget * number // rounds - int(selected.sum())", "budget // rounds", "remainder"),
        ('exclude=selected | exclude,\n', 'exclude=selected,\n', 'closed'),
        ("forget[m], rarity=rarity,", "forget[m],", "weights"),
    ),
    *_of("unlearning.evidence", "pruning",
        ('scores = scores.masked_fill(exclude, -torch.inf)', 'pass', 'again'),
        ('per = "tower" if variant == "released_score" else "model"', 'per = "model"', "tower"),
        ("        check_unchanged(model)\n", "        pass\n", "stacked"),
        ('self.statistics("forget"), self.statistics("retain"))',
         'self.statistics("forget"), self.statistics("forget"))', 'set'),
    ),
    *_of("unlearning.evidence", "evidence",
        ("for name, of in samples.items() if of is None}",
         "for name, of in samples.items()}", "stale"),
        ("**self.seen, **self.options, ", "**self.options, ", "lost"),
    ),
    *_of("unlearning.evidence", "pruning clear_tofu",
        ('set(self.modalities) != set(MODALITIES)', 'False', 'unchecked'),
    ),
    *_of("unlearning.attribution", "attribution",
        ("logits.scatter(1, targets[:, None], -torch.inf).amax(1)", "logits.amax(1)", "itself"),
        ("(right - others).float() * weights)", "(right - others).float())", "weights"),
        ("[rows] > 0, weights, 1.0)", "[rows] >= 0, weights, 1.0)", "alike"),
        ("total_of.clamp(min=0).cpu()", "total_of.abs().cpu()", "sign"),
        ("wide = torch.promote_types(gradient.dtype, torch.float32)", "wide = gradient.dtype",
         "overflow"),
        ("total_of = product.sum(1)", "total_of = product.clamp(min=0).sum(1)", "order"),
        ('scaled_to_one(rows).sum(0) / len(questions)', 'rows.sum(0) / len(questions)', 'loudest'),
        ("attribution.sum(1) ** 2 /", "attribution.sum(1) /", "square"),
    ),
    *_of("unlearning.coverage", "attribution",
        ('scaled_to_one(forget[modality]) / len(forget[modality])',
         'scaled_to_one(forget[modality])', 'balance'),
        ("cost / cost.mean().clamp(min=1e-30) + floor", "cost + floor", "units"),
        ("torch.minimum(part, needed[:, None])", "part", "share"),
        ("        remaining.index_add_(0, modality_of, -taken)\n", "", "stale"),
        ("at_once = max(1, budget // 100)", "at_once = max(1, budget // 10)", "greedy"),
        ("needed = share * size", "needed = share * torch.ones_like(size)", "share"),
    ),
    *_of("unlearning.moments", "editing",
        ("alpha=1 / (n_tokens * len(questions))", "alpha=1 / n_tokens", "mean"),
        ('real = batch["attention_mask"].bool()',
         'real = torch.ones_like(batch["attention_mask"]).bool()', "padding"),
    ),
    *_of("unlearning.rewriting", "editing",
        (".sum() / len(left)", ".sum() / len(items)", "mean"),
        ("ridge * moment.diagonal().mean()", "ridge", "units"),
        ("alpha=-strength * margin / fall", "alpha=-margin / fall", "strength"),
        ("alpha=-strength * margin / fall", "alpha=strength * margin / fall", "sign"),
        ("        check_unchanged(model)\n", "        pass\n", "stacked"),
        ('        if mlp.tower == "language"\n    ]\n    if not any',
         "    ]\n    if not any", "tower"),
    ),
    *_of("unlearning.losses", "baselines",
        ("2 / beta * F.softplus(beta * ratio)", "1 / beta * F.softplus(beta * ratio)", "factor"),
        ("F.softplus(beta * ratio)", "F.softplus(-beta * ratio)", "sign"),
        ("(vanilla.exp() * (vanilla - current))",
         "(current.exp() * (current - vanilla))", "direction"),
        (".sum(-1).mean()", ".sum()", "mean"),
        ("return -F.cross_entropy(forget_logits", "return F.cross_entropy(forget_logits", "sign"),
        ("log_likelihood / lengths + gamma", "log_likelihood + gamma", "length"),
        ("softplus(-beta * (ratio_of_winner", "softplus(beta * (ratio_of_winner", "sign"),
    ),
    *_of("unlearning.baselines", "baselines",
        ("hold=1.0", "hold=0.0", "schedule"),
        ("used = {m: retain[m] for m in forget}", "used = {m: forget[m] for m in forget}", "set"),
        ("loss + retain_weight * kept", "loss + kept", "weight"),
        ("processor, sizes[1], apart", "processor, sizes[0], apart", "batch"),
        ("    put_back()\n    return history", "    return history", "mask"),
    ),
    *_of("unlearning.saliency", "rivals baselines",
        ("value=1 / len(work)", "value=1", "mean"),
        (">= threshold", "<= threshold", "side"),
        ("torch.where(free, parameter, before)", "parameter", "mask"),
    ),
    *_of("unlearning.rivals", "rivals",
        (".clamp(max=1)", "", "bound"),
        ("w.float() - scale", "w.float() + scale", "sign"),
    ),
    *_of("unlearning.weakening", "rivals",
        (".clamp(min=0)", "", "louder"),
    ),
    *_of("unlearning.privacy_neurons", "rivals",
        ("range(1, steps + 1)", "range(steps)", "points"),
        ("found >= threshold * largest", "found >= largest", "threshold"),
    ),
    *_of("unlearning.neuron_paths", "neuron_paths",
        ("(z[last] + z_path) * (sums[last] + g_path)", "z[last] * sums[last]", "path"),
        ("g * g if squared else g", "g", "fisher"),
        ("(p, j / steps * z[layer], z[layer])", "(p, z[layer], z[layer])", "scaled"),
        ("for linear in mlp.before:", "for linear in (*mlp.before, mlp.after)[-1:]:", "weights"),
    ),
    *_of("unlearning.other_manus", "rivals",
        ("factor * values", "(1 - factor) * values", "factor"),
        ("members[-LAST_LAYERS:]", "members", "layers"),
    ),
    *_of("evaluation.tables", "baselines",
        ("(1 - (1 - gone).abs())", "gone", "distance"),
        (".clip(upper=1).mean()", ".mean()", "better"),
        ("len(parts) / sum(1 / part for part in parts.values())",
         "sum(parts.values()) / len(parts)", "mean"),
    ),
    *_of("models.asking", "training baselines",
        ("[rows, positions + 1]", "[rows, positions]", "shifted"),
        ("hidden[read]", "hidden[read + 1]", "shifted"),
    ),
    *_of("models.training", "training baselines",
        ("(0.1 + 0.45 * (1 + math", "(0.5 * (1 + math", "zero"),
        ("(step + 1) / warmup", "step / warmup", "zero"),
        ("clip_grad_norm_(parameters, 1.0)", "clip_grad_norm_(parameters, 100.0)", "clip"),
        ("        optimizer.zero_grad(set_to_none=True)\n", "", "sum"),
        ("rng.sample(items, len(items)) + queue", "queue + rng.sample(items, len(items))", "order"),
        ("        scaler.unscale_(optimizer)\n", "", "clip"),
        ("            parameter.grad = None\n", "            pass\n", "gradients"),
        ("(step + 1) % every == 0 or step == steps - 1", "(step + 1) % every == 0", "last"),
        ("        model.eval()\n        seen", "        seen", "mode"),
    ),
    *_of("models.adapters", "training baselines",
        ("lora_alpha=rank", "lora_alpha=4 * rank", "scale"),
        ("torch.manual_seed(seed)", "torch.manual_seed(0)", "seed"),
    ),
    *_of("models.passes", "attribution",
        ("(2.0**-8, 2.0**-16) if half else ()", "()", "overflow"),
        ("part.float() / scale", "part.float()", "scaled"),
    ),
    *_of("models.passes", "training baselines",
        ("parameter.requires_grad_(flag)", "parameter.requires_grad_(True)", "flags"),
        ("            module.training = training\n", "            pass\n", "mode"),
        ("torch.enable_grad(), without_cudnn_attention():", "torch.enable_grad():", "nan"),
        ("torch.backends.cuda.enable_cudnn_sdp(before)", "pass", "kernel"),
    ),
    *_of("models.precision", "training baselines",
        ("(model.get_decoder(), model.get_output_embeddings())", "(model.get_decoder(),)", "head"),
        ("parameter.data.copy_(before[key])", "pass", "left"),
    ),
    *_of("models.encoding", "batches activations evaluation architectures",
        ('"padding_side": "left"', '"padding_side": "right"', "side"),
        ("key=lambda index: -length_of[index]", "key=lambda index: length_of[index]", "order"),
    ),
    *_of("models.prefix_tree", "batches activations evaluation architectures",
        ("positions[row, nodes] = torch.arange(t)", "positions[row, nodes] = nodes", "rope"),
        ("= earlier[:t, :t]", "= True", "future"),
        ('path[border - 1 : -1]', 'path[border :]', 'shifted'),
        ("nodes.setdefault((node, token), len(nodes))",
         "nodes.setdefault((len(path), token), len(nodes))", "merged"),
        ('features = 1 + image_tokens(', 'features = image_tokens(', 'shifted'),
        ("torch.eye(size[1], dtype=torch.bool)",
         "torch.zeros(size[1], size[1], dtype=torch.bool)", "empty"),
    ),
    *_of("models.prompts", "batches activations evaluation architectures",
        ('body.replace("__", "[Blank]")', "body", "wording"),
        ("SENTENCE_LINE_TEXT if text_only", "SENTENCE_LINE_IMAGE if text_only", "wording"),
        ("return not (begin and prompts", "return bool(begin and prompts", "twice"),
        ('if "strftime_now" in template:', "if False:", "today"),
        ('{before}{q.answer}{after}"', '{before}{q.answer}"', "end"),
        ("after = end.rstrip() or after", "after = end or after", "newline"),
    ),
    *_of("models.prompts", "muse",
        ('q.answer if q.task == "raw" else f', "f", "end"),
    ),
    *_of("models.encoding", "muse",
        ("max(1, common_beginning(prompt, whole))", "common_beginning(prompt, whole)", "first"),
        ("if uses_chat(processor) and not raw else", "if uses_chat(processor) else", "reader"),
    ),
    *_of("auditing.membership", "muse",
        ('if questions[0].task == "raw":', "if False:", "last"),
    ),
    *_of("benchmark.muse", "muse",
        ('else f" {follows}"', "else follows", "space"),
        ('f"{split}_icl"', "split", "shots"),
    ),
    *_of("models.asking", "evaluation protocols",
        ("(share == 1)", "(share > 0.5)", "most"),
        ("index_add_(0, rows, values) / counts", "index_add_(0, rows, values)", "length"),
        ("logits.float().log_softmax(-1)", "logits.float()", "logits"),
        ("model.generation_config = GenerationConfig()", "pass", "settings"),
        (" | torch.isin(written, all_ends) & torch.isin(targets, all_ends)", "", "ends"),
        ("if words == question.answer)", "if words)", "letter"),
    ),
    *_of("models.prefix_tree", "evaluation protocols",
        ("running & ~torch.isin(tokens, ends)", "running", "end"),
        ("dim=-1), positions + 1", "dim=-1), positions", "rope"),
        ("cache.batch_select_indices(left.nonzero()[:, 0])",
         "cache.batch_select_indices((~left).nonzero()[:, 0])", "cache"),
    ),
    *_of("evaluation.judging", "evaluation protocols",
        ('first in tuple("ABCD")', 'first in "ABCD"', "empty"),
        ("question.answer.lower() in response.lower()", "question.answer in response", "case"),
        ("same = normalise(response) == normalise(question.answer)",
         "same = normalise(question.answer) in normalise(response)", "part"),
    ),
    *_of("evaluation.tables", "evaluation protocols",
        ('RougeScorer(["rougeL"], use_stemmer=True)',
         'RougeScorer(["rougeL"], use_stemmer=False)', "stems"),
        ('value="mean", n="size"', 'value="median", n="size"', "mean"),
    ),
    *_of("teaching.leaderboard", "evaluation protocols",
        ("method, float(alpha) if alpha else None", "method", "alpha"),
    ),
    *_of("evaluation.answers_file", "resume evaluation",
        ('own | {"options": question.options} | more', "own | more", "key"),
    ),
    *_of("evaluation.tables", "resume evaluation",
        ("protocol=protocol, max_new_tokens=length)", "protocol=protocol)", "key"),
    ),
    *_of("evaluation.answers_file", "resume",
        ("json.dumps([run, own], sort_keys=True)", "json.dumps([own], sort_keys=True)", "model"),
        ("file.truncate(n_bytes)", "pass", "half"),
        ('in content[:n_bytes].split(b"\\n")[:-1]', 'in content.split(b"\\n")', "half"),
        ("ask(list(items[part]))", "ask(list(items))[part]", "work"),
    ),
    *_of("models.fingerprints", "resume",
        ("encode() + image.tobytes()", "encode()", "pixels"),
        (" {tuple(tensor.shape)}\"", "\"", "shape"),
        ('for name in ("config", "generation_config"):', 'for name in ("config",):', "settings"),
        ("[*templates, DATE]", "[DATE]", "template"),
    ),
    *_of("benchmark.questions", "benchmark sources",
        ("        for image in images\n    ]\n    if not",
         "        for image in images[:1]\n    ]\n    if not", "views"),
        ("options.get(letter[1].upper())", "options.get(letter[1])", "case"),
        ("if list(options.values()).count(answer) > 1:", "if False:", "ambiguous"),
        ('if rewrite == "both":', "if False:", "answer"),
    ),
    *_of("benchmark.rows", "benchmark sources",
        ('if isinstance(words, (str, int, float))\n        and not', 'if not', "null"),
        ('TYPES = {"multimodal": "Image_Textual", "text": "Pure_Text"}',
         'TYPES = {"multimodal": "Pure_Text", "text": "Image_Textual"}', 'modality'),
    ),
    *_of("benchmark.loading", "benchmark sources",
        ('f"retain_{100 - forget_ratio}", images', 'f"retain_{forget_ratio + 80}", images', "set"),
        ('set(forget_ids) & set(people_of(retain))', 'set(forget_ids) & set()', 'unchecked'),
    ),
    *_of("benchmark.sets", "benchmark sources",
        ("if person_id in wanted]", "]", "everybody"),
    ),
    *_of("benchmark.records", "pruning baselines",
        ("people[0] & people[1]", "people[0] - people[0]", "unchecked"),
    ),
    *_of("benchmark.text_only", "wording benchmark",
        ("lambda match: match[1].upper()", "lambda match: match[1]", "capital"),
        ("lambda match: name, question", "name, question", "escape"),
        ("return rewritten if about_kin else", "return", "father"),
        ("place or whole and (match", "place or (match", "sister"),
        ("(match or not _may_be_a_sentence(answer))", "True", "sentence"),
        ('part[len(head) :].startswith(",")\n', "False\n", "inverted"),
        ("_in_third_person(rest) if they else rest", "rest", "verb"),
    ),
    *_of("benchmark.pictures", "pictures benchmark",
        ("PIL.ImageOps.exif_transpose(image)", "image", "turned"),
        ('PIL.Image.new("RGBA", image.size, "white")',
         'PIL.Image.new("RGBA", image.size, "black")', "transparent"),
        ("levels = levels / 257", "levels = levels / 256", "range"),
        ("_kept[self.key] = image", "_kept[0] = image", "never"),
        ("if n_pixels <= MOST_KEPT", "if n_pixels > 0", "grows"),
    ),
    *_of("models.passes", "checks",
        ("        model.eval()\n", "", "dropout"),
        ("stack.enter_context(torch.autocast(device, enabled=False))", "pass", "rounding"),
        ("            module.training = True\n", "            pass\n", "mode"),
        ("if not all(torch.isfinite(tensor).all() for tensor in tensors):", "if False:", "nan"),
    ),
    *_of("checks", "checks",
        ("isinstance(value, bool) or not isinstance(value, numbers.Real)",
         "not isinstance(value, numbers.Real)", "bool"),
    ),
    *_of("unlearning.released", "released",
        ("/ n).clamp(min=0) / (n - 1)", "/ n).clamp(min=0) / n", "unbiased"),
        ('{"vision": "multimodal", "language": "text"}',
         '{"vision": "multimodal", "language": "multimodal"}', "modality"),
        ('"padding_side": "right"', '"padding_side": "left"', "side"),
        (".double().clamp(-LIMIT, LIMIT)", ".double()", "limit"),
        ("indices = rng.sample(range(n_questions), n_questions)",
         "indices = list(range(n_questions))", "order"),
        ("last = members[-LAST_LAYERS:]", "last = members[:LAST_LAYERS]", "layer"),
    ),
    *_of("evaluation.official", "protocols",
        ('n = 2 if task == "cloze" and not idefics else 1', "n = 1", "shots"),
        ("solved.get(person[0].person_id, 0)", "0", "leak"),
        ("decoded.split(marker)[1]", "decoded.split(marker)[-1]", "last"),
        ('(task == "classification" and set_name == "celebrity")', "False", "celebrity"),
        ("views[int(draw.random() * len(views))]", "views[0]", "view"),
        ('table["value"] * 100', 'table["value"]', "percent"),
        ("(*images, *own)", "(*own, *images)", "order"),
    ),
    *_of("evaluation.shots", "protocols",
        ("own[i]][2:]", "own[i]]", "echo"),
        ('    batch["position_ids"] += p\n', "", "rope"),
        ("torch.stack([place, number % n], dim=1)",
         "torch.stack([place, 0 * number], dim=1)", "feature"),
    ),
    *_of("evaluation.judging", "protocols",
        ("auto_reweigh=short", "auto_reweigh=False", "short"),
        ("SmoothingFunction().method1", "SmoothingFunction().method0", "smoothing"),
        ("re.escape(truth.strip().lower())}(?!\\w)", "re.escape(truth.strip().lower())}", "part"),
        ("named.pop() if len(named) == 1 else None", "named.pop()", "several"),
    ),
    *_of("evaluation.robust", "protocols",
        ("if person_id not in scored]", "]", "leak"),
        ("totals.sum(axis) / counts.sum(axis)", "(totals / counts).mean(axis)", "weights"),
    ),
    *_of("models.neurons", "neurons pruning",
        ('"connector", "resampler", "merger"', '"connector", "resampler"', "merger"),
        ("alpha < 0.5 and", "alpha <= 0.5 and", "limit"),
        ("0 < alpha < 100", "0 < alpha <= 100", "limit"),
        ("selected.dtype != torch.bool or selected.shape", "selected.shape", "unchecked"),
        ("not any(part.isdecimal() for part in path.split(\".\")) or", "", "head"),
        ("    if linear.weight.is_meta:", "    if False:", "unchecked"),
    ),
    *_of("models.image_positions", "activations architectures",
        ("class_tokens = int(any(", "class_tokens = 0 * int(any(", "class"),
        ("(position >= 1)", "(position >= 0)", "class"),
        ('covered == patch**2 if config.model_type == "idefics2" else covered > 0',
         "covered > 0", "half"),
        (".view(rows, columns, side, side)\n            .transpose(1, 2)",
         ".view(rows, side, columns, side)", "tiles"),
        ("if n != expected:", "if n < expected:", "unchecked"),
        ("tiles[:, len(one) - side * side :] = inside", "pass", "border"),
    ),
    *_of("models.prefix_tree", "batches activations evaluation",
        ("~allowed, torch.finfo", "allowed, torch.finfo", "inverted"),
        ('("input_ids", "position_ids", "pixel_values")', '("input_ids", "pixel_values")', "rope"),
        (".values())) > 1:", ".values())) > 2:", "devices"),
        (' and text._attn_implementation in ("sdpa", "eager")', "", "attention"),
        ('text.model_type == "llama" and ', "", "family"),
    ),
]  # fmt: skip
MUTATIONS = (*ONCE_UNSEEN, *OTHERS)
# Name of a change -> why no test can see the change.
EQUIVALENT: dict[str, str] = {
    "unlearning.coverage: (size - facts[:, selected].sum(1)).clamp(min=0) -> size.clone()":
        "no neuron that is left holds more than what is left of a fact, so either bound leaves it "
        "whole",
    'evaluation.answers_file: own | {"options": question.options} | more -> own | more':
        "the prompt holds the options as well",
}
# What is run after the tests that are named for a change. No file that long runs other processes.
CHEAP = tuple(
    f"test_{name}.py"
    for name in (
        "importance neurons batches benchmark activations attribution training pruning sources "
        "clear_tofu editing resume baselines models evaluation protocols architectures checks "
        "wording pictures released"
    ).split()
)
SURVIVED_ITS_OWN = "survived its own"
HELPERS = ("conftest.py", "doors.py", "tiny_models.py")


# ----------------------------------------------------------------------------- a change and its key


def mutated(mutation: Mutation, source: str) -> str | None:
    """The source of the module with the change made; None if it cannot be made there."""
    if source.count(mutation.old) != 1:
        return None
    text = source.replace(mutation.old, mutation.new)
    try:
        return None if _meaning(text) == _meaning(source) else text
    except SyntaxError:
        return None


@lru_cache(maxsize=2)
def _meaning(source: str) -> str:
    """A source without its comments and layout."""
    return ast.dump(ast.parse(source))


def source_of(mutation: Mutation, root: Path | None = None) -> Path:
    return (root or ROOT).joinpath("manu_utils", *mutation.module.split(".")).with_suffix(".py")


def key_now(mutation: Mutation, state: str, by: str) -> str:
    """A hash of what a result depends on, as it is now."""
    return (
        near(mutation, by) if by else own(mutation) if state == SURVIVED_ITS_OWN else far(mutation)
    )


def key_of(files: list[Path], *more: str) -> str:
    digest = hashlib.sha256(json.dumps(more).encode())
    for file in sorted(set(files)):
        digest.update(f"{file.parent.name}/{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def tests(names) -> list[Path]:
    return [ROOT / "tests" / name for name in (*HELPERS, *names)]


def near(mutation: Mutation, by: str) -> str:
    """What a kill by the test ``by`` (file::name) depends on."""
    file, _, name = by.partition("::")
    text = (
        (ROOT / "tests" / file).read_text(encoding="utf-8")
        if (ROOT / "tests" / file).is_file()
        else ""
    )
    name = name.partition("[")[0]
    found = [node for node in ast.parse(text).body if getattr(node, "name", None) == name]
    return key_of(
        [source_of(mutation)],
        *mutation[:3],
        ast.get_source_segment(text, found[0]) if found else text,
    )


def own(mutation: Mutation) -> str:
    """What survival of the tests that are named for a change depends on."""
    return key_of([source_of(mutation), *tests(mutation.tests)], *mutation[:3])


def far(mutation: Mutation) -> str:
    """What survival of all tests depends on."""
    return key_of(
        [*(ROOT / "manu_utils").rglob("*.py"), *tests((*mutation.tests, *CHEAP))], *mutation[:3]
    )


# ------------------------------------------------------------------------------------ running tests


def preload() -> None:
    """Whatever takes long to import and is none of ours."""
    import datasets  # noqa: F401
    import hypothesis  # noqa: F401
    import nltk  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import rouge_score.rouge_scorer  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    from transformers import (  # noqa: F401
        AutoModelForImageTextToText,
        AutoProcessor,
        CLIPImageProcessorPil,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.set_num_threads(1)


def copy_project(folder: Path) -> Path:
    """The package and its tests in an empty folder, and links to data and notebooks."""
    for name in ("manu_utils", "tests", "experiments", "speed", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "conftest.py"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("data", "notebooks"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def start(copy: Path, names: tuple[str, ...]) -> int:
    """The id of a process that runs test files in a copy of the project."""
    (process := os.fork()) or _child(copy, names)
    return process


def _kill(process: int) -> None:
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:  # it is so young that it leads no group yet
        os.kill(process, signal.SIGKILL)


def _child(copy: Path, names: tuple[str, ...]) -> None:
    code = 99
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(copy / "log.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(log, 1), os.dup2(log, 2)
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)
        import pytest
        from hypothesis import Phase, settings

        import manu_utils

        # A failure that hypothesis found need not be made small.
        settings.register_profile(
            "first failure", phases=[Phase.explicit, Phase.generate], database=None
        )
        settings.load_profile("first failure")
        if Path(manu_utils.__file__).parent != copy / "manu_utils":
            print(f"ERROR {manu_utils.__file__} was imported")
        else:
            quick = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE"]
            code = int(pytest.main([*quick, *(f"tests/{name}" for name in names)]))
    except BaseException as error:  # such as a module that cannot be imported any more
        code = 1
        print(f"ERROR {type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        os._exit(code)


def first_failure(copy: Path) -> str:
    lines = (copy / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    found = next(
        (line for line in lines if line.startswith(("FAILED ", "ERROR "))), "ERROR no test ran"
    )
    return (
        found.split(" - ")[0].removeprefix("FAILED ").removeprefix("ERROR ").removeprefix("tests/")
    )


def run_all(work: list[tuple[object, Mutation | None, tuple[str, ...]]], copies: list[Path]):
    """Yields (label, passed, by whom it failed, seconds of CPU) as they end.

    ``work`` holds (label, change, test files).
    """
    waiting, free, running = list(work), list(copies), {}
    try:
        while waiting or running:
            while waiting and free:
                label, mutation, names = waiting.pop(0)
                copy = free.pop()
                if mutation is not None:
                    place = source_of(mutation, copy)
                    place.write_text(
                        mutated(mutation, place.read_text(encoding="utf-8")), encoding="utf-8"
                    )
                running[start(copy, names)] = label, mutation, copy, time.monotonic() + SECONDS
            for process, (label, mutation, copy, until) in list(running.items()):
                ended, status, used = os.wait4(process, os.WNOHANG)
                late = not ended and time.monotonic() > until
                if late:
                    _kill(process)
                    _, status, used = os.wait4(process, 0)
                if ended or late:
                    del running[process]
                    free.append(copy)
                    if mutation is not None:
                        shutil.copy(source_of(mutation), source_of(mutation, copy))
                    by = "does not end" if late else "" if status == 0 else first_failure(copy)
                    yield label, status == 0, by, used.ru_utime + used.ru_stime
            time.sleep(0.05)
    finally:
        for process in running:
            _kill(process)
            os.waitpid(process, 0)


# ---------------------------------------------------------------------------------------- the whole


def read_results() -> dict:
    try:
        return json.loads(RESULTS.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def keep(results: dict) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    part = RESULTS.with_name(f".{RESULTS.name}.part")
    part.write_text(json.dumps(results, indent=1), encoding="utf-8")
    os.replace(part, RESULTS)


def check_unchanged(names: set[str], copies: list[Path], results: dict) -> None:
    """Without a change all tests pass, or nothing could be learnt from a failure."""
    sources = list((ROOT / "manu_utils").rglob("*.py"))
    keys = {name: key_of([*sources, *tests([name])]) for name in sorted(names, key=cost)}
    todo = [(name, None, (name,)) for name, key in keys.items() if results.get(name) != key]
    for name, passed, by, seconds in run_all(todo, copies):
        print(f"unchanged  {name}  {seconds:.0f} s", flush=True)
        if not passed:
            sys.exit(f"{by} fails without any change; mend it first.")
        results[name] = keys[name]
        keep(results)


def cost(name: str) -> int:
    return CHEAP.index(name) if name in CHEAP else len(CHEAP)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", help="changes whose name holds this, such as 'pruning:'"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="how many at a time, each with one thread"
    )
    parser.add_argument(
        "--quick", action="store_true", help="only the test files that are named for a change"
    )
    options = parser.parse_args()
    if not hasattr(os, "fork"):
        sys.exit("this needs fork; use Linux, macOS or WSL.")
    os.environ |= {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    sys.dont_write_bytecode = True
    chosen = [mutation for mutation in MUTATIONS if options.only in mutation.name]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the next run goes on from here."))
    results, states = read_results(), {}
    for mutation in chosen:
        entry = results.get(mutation.name, {})
        if mutated(mutation, source_of(mutation).read_text(encoding="utf-8")) is None:
            states[mutation] = ("could not be applied", "", 0.0)
        elif entry and entry["key"] == key_now(mutation, entry["state"], entry["by"]):
            states[mutation] = (entry["state"], entry["by"], entry["seconds"])
    preload()
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for number in range(options.jobs):
            (copy := Path(folder).resolve() / str(number)).mkdir()
            copies.append(copy_project(copy))
        # the tests that are named for a change, then the others
        for first in (True, False)[: 1 if options.quick else 2]:
            todo = [
                m
                for m in chosen
                if m not in states or (not first and states[m][0] == SURVIVED_ITS_OWN)
            ]
            files = {
                m: m.tests if first else tuple(name for name in CHEAP if name not in m.tests)
                for m in todo
            }
            todo.sort(key=lambda m: [cost(name) for name in m.tests])
            check_unchanged({name for names in files.values() for name in names}, copies, results)
            for mutation, passed, by, seconds in run_all([(m, m, files[m]) for m in todo], copies):
                seconds += states.get(mutation, ("", "", 0.0))[2]
                state = "killed" if not passed else SURVIVED_ITS_OWN if first else "survived"
                states[mutation] = (state, by, seconds)
                key = key_now(mutation, state, by)
                results[mutation.name] = {
                    "state": state,
                    "by": by,
                    "seconds": round(seconds, 1),
                    "key": key,
                }
                keep(results)
                number = sum(m in states for m in chosen) if first else todo.index(mutation) + 1
                total = len(chosen) if first else len(todo)
                print(
                    f"[{number:3}/{total}] {state:16} {seconds:5.0f} s  "
                    f"{mutation.name[:100]}  {by}",
                    flush=True,
                )
    return report(chosen, states)


def report(chosen: list[Mutation], states: dict[Mutation, tuple[str, str, float]]) -> int:
    """Prints the table by module and what was not killed; the exit status."""
    killed = [m for m in chosen if states[m][0] == "killed"]
    print(f"\n{'module':12} {'changes':>7} {'killed':>7} {'survived':>9} {'not applied':>12}")
    for module in dict.fromkeys(m.module for m in chosen):
        of = [states[m][0] for m in chosen if m.module == module]
        gone, none = of.count("killed"), of.count("could not be applied")
        print(f"{module:12} {len(of):7} {gone:7} {len(of) - gone - none:9} {none:12}")
    for mutation in chosen:
        if mutation not in killed:
            why = EQUIVALENT.get(mutation.name, f"({mutation.wrong})")
            print(f"{states[mutation][0]}: {mutation.name}  {why}")
    share, seconds = len(killed) / len(chosen), sum(state[2] for state in states.values())
    print(
        f"{len(killed)} of {len(chosen)} killed, {100 * share:.1f} %; "
        f"{seconds / 60:.0f} minutes of CPU in all"
    )
    return 0 if share >= MIN_KILLED else 1


if __name__ == "__main__":
    sys.exit(main())
