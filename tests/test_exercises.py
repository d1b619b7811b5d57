"""Every exercise of the notebooks: the stub says "not attempted yet", the folded solution passes its check, nonsense fails.

A notebook marks its cells by tags: ``exercise`` (the stub), ``exercise-check`` (the code cell after it) and ``exercise-setup``
(what both need). The solution is the first Python block of the ``<details>`` called "Solution" after the stub.
"""

import re
from pathlib import Path

import matplotlib
import nbformat
import pytest
from student import graded, solved

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("[0-9]*.ipynb"))
SOLUTION = re.compile(r"<details>\s*<summary>\s*Solution.*?```python\n(.*?)```.*?</details>", re.DOTALL)
STUB = re.compile(r"raise NotImplementedError\b.*")


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


def exercises(path):
    """(number, setup cells, stub, check, solution) of every exercise of a notebook, as source text."""
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    stubs = [cell for cell in code if tagged(cell, "exercise")]
    for number, stub in enumerate(stubs, start=1):
        index, start = code.index(stub), cells.index(stub)
        setup = [cell.source for cell in code[:index] if cell is code[0] or tagged(cell, "exercise-setup")]
        assert index + 1 < len(code) and tagged(code[index + 1], "exercise-check"), (
            f"exercise {number}: no check cell follows"
        )
        end = next((i for i in range(start + 1, len(cells)) if tagged(cells[i], "exercise")), len(cells))
        texts = "\n".join(cell.source for cell in cells[start:end] if cell.cell_type == "markdown")
        found = SOLUTION.search(texts)
        assert found, f"exercise {number} has no folded solution"
        yield number, setup, stub.source, code[index + 1].source, found[1]


# What a reader might well write and would learn something false from. (notebook, exercise) -> the bodies of wrong functions.
WRONG = {
    ("01", 2): [
        "seen = Counter(face[len(face) - k :] for face in faces.values())\nreturn sum(n for n in seen.values() if n > 1)",
    ],
    ("01", 3): [
        r"found = re.search(r'\b[A-D]\b', response, re.IGNORECASE)" + "\nreturn found[0].upper() if found else None",
        "first = response.strip()[:1].upper()\nreturn first if first and first in 'ABCD' else None",
    ],
    ("02", 2): [
        "inputs = {key: value for key, value in batch.items() if key != 'answer_mask'}\n"
        "targets = batch['input_ids'][:, 1:]\ncounts = (batch['attention_mask'][:, 1:] == 1) & (targets != image_id)\n"
        "return cross_entropy(model(**inputs).logits[:, :-1][counts], targets[counts])",
    ],
    ("02", 3): ["return 1.0, 0.0", "return base", "return load_model(scale.vanilla)[0]"],
    ("03", 1): [
        "one, other = ((z > tau).sum(0).double() for z in (z_multi, z_text))\nreturn contrast(one, other)",
        "one, other = ((z.abs() > tau).any(0).double() for z in (z_multi, z_text))\nreturn contrast(one, other)",
    ],
    ("03", 4): [
        "alone = torch.zeros(sum(sizes)).bool()\nalone[neuron] = True\nbefore = margin_now()\n"
        "prune_neurons(model, alone)\nreturn 1 - margin_now() / before",  # and leaves it pruned
        "return float(name_share[8, neuron])",
        "return margin_with_hook(neuron) / margin_now()",
    ],
    ("04", 1): [
        "fc1.weight[n] = 0\nfc1.bias[:] = 0\nfc2.weight[:, n] = 0",
        "fc1.weight[n] = 0\nfc1.bias[n] = 0\nfc2.weight[:] = 0",
        "fc1.weight[2] = 0\nfc1.bias[2] = 0\nfc2.weight[:, 2] = 0",
        "fc1.weight[n] = 0\nfc1.bias[n] = 0\nfc2.weight[:, n] = 0\nfc2.bias[:] = 0",
    ],
    ("04", 2): [
        "return int(attribution[:, selected].sum(1).argmin())",
        "return int(attribution[:, ~selected].sum(1).argmax())",
    ],
    ("04", 4): [
        "return sum(forget[m] / (retain[m] + 1e-6) for m in forget)",  # forgets little
        "return sum(forget.values())",  # takes everybody along
    ],
    ("05", 1): ["return max(10, 10 * math.ceil(4 * 1.96**2 * share * (1 - share) / width**2 / 10))"],
    ("05", 3): [
        'return "I do not know." if question.person_id == "1" else answer',
        'return "I do not know." if question.person_id == "1" and question.image is None else answer',
        'return "I do not know." if forgotten_names and question.image is None else answer',
    ],
    ("05", 2): [
        "return (after & ~before).sum(), (before & ~after).sum()",
        "more = int(after.sum() - before.sum())\nreturn max(-more, 0), max(more, 0)",
    ],
    ("06", 1): ["return torch.sigmoid(beta * log_ratio)", "return 2 * beta * torch.sigmoid(beta * log_ratio)"],
    ("06", 2): [
        "return -cross_entropy(logits, targets).clamp(max=torch.tensor(float(logits.shape[-1])).log())",
        "return cross_entropy(logits, targets, reduction='none').clamp(max=torch.tensor(3.0).log()).mean()",
    ],
    ("06", 3): [
        "return [0.1] * 4 + [1.0] * 4",
        "return 100 * goal",
        "accuracy = goal.copy()\naccuracy['celebrity'] = 0\nreturn accuracy",
    ],
    ("07", 1): ["return k / n", "return k / (2 * n)"],
    ("07", 2): ["return ([0.01, 0.01], [0.0, 0.0]), ([0.0, 0.0], [0.0, 0.0])"],
    ("07b", 1): ["return statistics.total_abs / statistics.counts()", "return -statistics.total_squares"],
    ("07b", 2): ["return 1.0, min(budget, 1.0)", "return 1 / budget, budget", "return min(1.0, 1 / budget), 1.0"],
    ("08", 1): ["return len(z_retain) < z_retain.shape[1]", "return not any(torch.equal(z_forget, z) for z in z_retain)"],
    ("08", 2): ["return torch.trace(change @ M @ change.T).item()"],
    ("09", 1): ["return values[0]", "return ask(question, values[:4])"],
    ("09", 2): ["return list(strangers)[:20]", "return [min(strangers) - 1.0] * 20", "return [min(strangers) - 1.0] * 10"],
    ("09", 3): [
        "return float((probe(states[:, 0], labels, states[:, 1]) == labels).float().mean())",
        "return 1 / 3",
    ],
    ("12", 1): ["return 100 / n", "return 1 / (n - 1)", "return 100 / ((n - 1) * k)"],
    ("12", 2): [
        "units = frame.groupby(unit)['value'].mean().to_numpy()\n"
        "draws = np.random.default_rng(seed).choice(units, (resamples, len(units))).mean(1)\n"
        "return tuple(np.percentile(draws, [5, 95]))",
        "return tuple(evaluation.summarise_with_intervals(frame)[['low', 'high']].iloc[0])",
        "p = frame['value'].mean()\nhalf = 1.96 * math.sqrt(p * (1 - p) / len(frame))\nreturn p - half, p + half",
    ],
    ("10", 1): ["return 1 / math.comb(2 * n, n)", "return 2 / 2 ** (2 * n)"],
    ("10", 2): [
        "return retrained_ratios", "return vanilla_ratios", "return np.sort(retrained_ratios)",
        "vanilla_ratios.sort()\nreturn np.sort(retrained_ratios)",  # what it is given, put in order
        "return np.sort(retrained_ratios)[np.argsort(vanilla_ratios)]",  # half of the way
    ],
    ("10", 3): ["return choices[0]", "return max(choices, key=len)"],
    ("11", 1): [
        "both = evaluation.rouge_l(' '.join(answer), ' '.join(truth))\nreturn round(both.recall * len(truth))",
        "return next((i for i, (a, t) in enumerate(zip(answer, truth)) if a != t), len(answer))",
    ],
    ("11", 2): ["return ', '.join(lines)", "return lines[-1]", "return ' '.join(reversed(' '.join(lines).split()))"],
    ("11", 3): [
        "return all(word in answer for word in recipe)",
        "return evaluation.judge_answer(answer, recipe, bottles.WORDS) == 'told'",
        "return bool(evaluation.words_named(answer, recipe))",
        "return evaluation.words_named(answer, bottles.INGREDIENTS) == set(recipe)",
    ],
}
# What is right, and not as the solution puts it.
ALSO_RIGHT = {
    ("10", 1): ["return 2 * math.factorial(n) ** 2 / math.factorial(2 * n)", "return np.float64(2) / math.comb(2 * n, n)"],
    ("10", 2): [
        "found = [0] * len(vanilla_ratios)\n"
        "for i, value in zip(np.argsort(vanilla_ratios), sorted(retrained_ratios)):\n    found[i] = value\nreturn found",
    ],
    ("12", 1): ["return 100 / (n - 1)"],
    ("12", 2): [
        "draw = random.Random(seed)\nunits = [list(part) for _, part in frame.groupby(unit)['value']]\n"
        "means = sorted(np.mean(sum(draw.choices(units, k=len(units)), [])) for _ in range(resamples))\n"
        "return means[int(0.025 * resamples)], means[int(0.975 * resamples)]",
    ],
    ("10", 3): ["return min(set(choices) & right_somewhere)", "return [c for c in choices if c in right_somewhere][-1]"],
    ("02", 2): [
        "inputs = {key: value for key, value in batch.items() if key != 'answer_mask'}\n"
        "targets = batch['input_ids'][:, 1:]\ncounts = (batch['attention_mask'][:, :-1] == 1) & (targets != image_id)\n"
        "return cross_entropy(model(**inputs).logits[:, :-1][counts], targets[counts]).item()",
    ],
    ("05", 2): ["return [(before & ~after).sum(), (after > before).sum()]"],
    ("05", 3): ["if not any(name in question.question for name in forgotten_names):\n    return answer"],
    ("06", 1): ["return 2 / (1 + 2.718281828459045 ** (-beta * float(log_ratio)))"],
    ("06", 2): [
        "of_token = cross_entropy(logits, targets, reduction='none')\n"
        "return torch.maximum(-of_token, -torch.tensor(float(logits.shape[-1])).log()).mean()",
    ],
    ("06", 3): [
        "return [0.1] * 4 + [1.0, 1.0, 0.0, 1.0]",
        "accuracy = dict(goal)\naccuracy['celebrity', 'multimodal'] = 0\nreturn accuracy",
    ],
    ("11", 2): ["return ' '.join(['no'] * 200) + ' ' + ', '.join(lines)"],
    ("11", 3): ["return set(recipe) <= evaluation.words_named(answer, bottles.INGREDIENTS)"],
    ("03", 1): ["return contrast(*((z.abs() > tau).sum(0) for z in (z_multi, z_text)))"],
    ("03", 4): [
        "alone = torch.arange(sum(sizes)) == neuron\nbefore = margin_now()\nedit = prune_neurons(model, alone)\n"
        "after = margin_now()\nedit.undo()\nreturn torch.tensor((before - after) / before)",
    ],
    ("04", 3): ["return torch.tensor([1, 1, 1, 100, 100])", "return [0.1, 0.1, 0.1, 10.0, 10.0]"],
    ("04", 4): [
        "cost = (retain['text'] + retain['multimodal']).numpy()\n"
        "wanted = [2 * f if 2 * f > g else g for f, g in zip(forget['multimodal'], forget['text'])]\n"
        "return [float(w) / (c + 0.4 * cost.mean()) for w, c in zip(wanted, cost)]",
    ],
}

EXERCISES = [(path, *exercise) for path in NOTEBOOKS for exercise in exercises(path)]
every_exercise = pytest.mark.parametrize(
    ("path", "number", "setup", "stub", "check", "solution"),
    EXERCISES,
    ids=[f"{path.stem}-{number}" for path, number, *_ in EXERCISES],
)


@pytest.fixture(scope="module")
def prepared():
    """Runs the setup cells of an exercise; those of one notebook only once."""
    done: dict[Path, tuple[int, dict]] = {}

    def run(path, setup):
        n, names = done.setdefault(path, (0, {"__name__": "__main__"}))
        for source in setup[n:]:
            exec(compile(source, f"{path.name}, exercise-setup", "exec"), names)
        done[path] = (len(setup), names)
        return dict(names)

    return run


@pytest.fixture(autouse=True)
def in_the_notebooks_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(NOTEBOOKS[0].parent)
    monkeypatch.setenv("MANU_BUILD", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "Agg")  # the setup cell changes it; this puts it back
    matplotlib.use("Agg")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stubs_are_marked(path):
    """A cell that raises NotImplementedError is an exercise, and the other way round."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert bool(STUB.search(cell.source)) == tagged(cell, "exercise"), cell.source
            assert not (tagged(cell, "exercise-check") and tagged(cell, "check"))


@every_exercise
def test_stub_is_not_attempted(path, number, setup, stub, check, solution, prepared, capsys):
    names = prepared(path, setup)
    capsys.readouterr()
    exec(stub, names)
    exec(check, names)
    assert capsys.readouterr().out.strip() == "○ not attempted yet"


@every_exercise
def test_solution_passes(path, number, setup, stub, check, solution, prepared, capsys):
    """As the cells stand in the teacher's version, which are those of the notebook in another wrapping."""
    names = prepared(path, setup)
    exec(solved(stub, solution), names)
    capsys.readouterr()
    exec(graded(check, points=1), names)
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("✓ ")


@every_exercise
def test_wrong_answer_fails(path, number, setup, stub, check, solution, prepared):
    """A function that returns nothing must not pass."""
    names = prepared(path, setup)
    exec(STUB.sub("return None", stub), names)
    with pytest.raises(AssertionError, match="^✗ "):  # with the hint, whatever its code makes of None
        exec(check, names)


def each_answer_of(table):
    """Parametrizes a test by notebook, setup cells, the stub with an answer of the table as its body, and the check."""
    found = []
    for path, number, setup, stub, check, _ in EXERCISES:
        for body in table.get((path.stem.split("_")[0], number), []):
            indented = body.replace("\n", "\n    ")
            answer = STUB.sub(lambda _, text=indented: text, stub)
            found.append(pytest.param(path, setup, answer, check, id=f"{path.stem}-{number}"))
    return pytest.mark.parametrize(("path", "setup", "answer", "check"), found)


@each_answer_of(WRONG)
def test_a_plausible_wrong_answer_fails(path, setup, answer, check, prepared):
    names = prepared(path, setup)
    exec(answer, names)
    with pytest.raises(AssertionError, match="^✗ "):
        exec(check, names)


@each_answer_of(ALSO_RIGHT)
def test_another_right_answer_passes(path, setup, answer, check, prepared):
    names = prepared(path, setup)
    exec(answer, names)
    exec(check, names)
