"""A folder in MLLMU-Bench's real layout, quirks and all, is read like the miniature; without pictures, no byte of them is."""

import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manu_utils.benchmark import files
from manu_utils.benchmark.files import config_names, read_config
from manu_utils.benchmark.loading import load_benchmark, load_config
from manu_utils.benchmark.questions import evaluation_questions, rewriting_report, training_questions
from manu_utils.benchmark.records import CONFIGS, MODALITIES, TASKS

PEOPLE = [f"{i + 1:03}" for i in range(20)]
NAMES = {person: f"Anna Berg-{person}" for person in PEOPLE}
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
PICTURE_BYTES = 49_000  # at least, of each


def picture(seed):
    """Noise, which does not compress: a picture weighs what its pixels weigh."""
    pixels = np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{seed}.png"}


def tasks_of(name, reference="this individual"):
    def choice(who):
        options = {"A": "nurse", "B": "baker", "C": "pilot", "D": "judge"}
        return [{"Question": f"What does {who} do?", "Options": options, "Correct_Answer": "B"}] * 5

    def open_questions(question):
        kinds = (("Image_Textual", reference), ("Pure_Text", name))
        return [{"Type": k, "Question": question.format(who), "Ground_Truth": "baker"} for k, who in kinds for _ in range(2)]

    return {
        "Classification_Task": {"Image_Textual_Questions": choice(reference), "Pure_Text_Questions": choice(name)},
        "Generation_Task": open_questions("What is the job of {}?"),
        "Mask_Task": open_questions("{} works as a __."),
    }


def profile(person):
    """Keys as they come: with a colon, a blank, another number, and a nested object."""
    return json.dumps({
        "Name:": NAMES[person], "Born ": " Perth", "Heights": "180 cm", "Height:": "", "Medical Condition": "None",
        "appearance_detail": {"question:": "Describe the person.", "answer": "Tall."}, "Shoe Size:": "44",
    })  # fmt: skip


def metadata(person):
    pairs = [
        ("What is the name of this individual?", f"The name of this individual is {NAMES[person]}."),
        ("Where was the person in the image born?", "In Perth."),
        ("What is the individual's job?", "A baker."),
    ]
    records = [{"ID": person, "Question": question, "Answer": answer} for question, answer in pairs]
    if int(person) % 2:
        records.append({"Additional_ID": person, "Additional_question": "Describe the person.", "Additional_answer": "Tall."})
    return json.dumps(records)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What `git clone` or `hf download` of MLLMU/MLLMU-Bench gives, with twenty people and small pictures."""
    folder = tmp_path_factory.mktemp("hub") / "MLLMU-Bench"

    def write(config, rows, shard="00000-of-00001"):
        image = "images" if config == "Test_Set" else "image"
        schema = pa.Table.from_pylist(rows).schema
        kind = pa.list_(IMAGE) if image == "images" else IMAGE
        schema = schema.set(schema.get_field_index(image), pa.field(image, kind))
        feature = {"_type": "Image"} if image == "image" else {"_type": "List", "feature": {"_type": "Image"}}
        others = datasets.Features.from_arrow_schema(schema.remove(schema.get_field_index(image))).to_dict()
        header = json.dumps({"info": {"features": {image: feature} | others}})
        (folder / config).mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(rows, schema=schema.with_metadata({"huggingface": header}))
        pq.write_table(table, folder / config / f"train-{shard}.parquet", row_group_size=8)

    portraits = {person: picture(int(person)) for person in PEOPLE}

    def person_row(person):
        row = {"image": portraits[person], "ID": person, "biography": profile(person), "question": "Describe the person."}
        return row | {"answer": "Tall."} | tasks_of(NAMES[person])

    def test_row(person):
        views = [picture(1000 * int(person) + k) for k in range(int(person) % 3 + 1)]
        return {"images": views, "ID": person} | tasks_of(NAMES[person], "the person in the image")

    write("Full_Set", [person_row(person) | {"Directory": f"images/{person}.png"} for person in PEOPLE])
    write("Test_Set", [test_row(person) for person in PEOPLE[:10]], "00000-of-00002")
    write("Test_Set", [test_row(person) for person in PEOPLE[10:]], "00001-of-00002")
    celebrities = [{**person_row("001"), "ID": person, "image": picture(5000 + int(person))} for person in ("001", "002")]
    write("Retain_Set", celebrities)
    write("ft_Data", [{"image": portraits[p], "ID": p, "metadata": metadata(p)} for p in PEOPLE])
    for ratio, size in ((5, 1), (10, 2), (15, 3)):
        forget = random.Random(ratio).sample(PEOPLE, size)
        write(f"forget_{ratio}", [person_row(person) for person in forget])
        write(f"retain_{100 - ratio}", [person_row(person) for person in PEOPLE if person not in forget])
    configs = [{"config_name": c, "data_files": [{"split": "train", "path": f"{c}/train-*"}]} for c in CONFIGS]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n\n# MLLMU-Bench\n")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The route of large files, through the cache of `datasets`; :func:`in_memory` takes that of small ones."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(files, "IN_MEMORY", 0)


@pytest.fixture(params=["by the cache", "in memory"])
def both_routes(own_cache, request, monkeypatch):
    if request.param == "in memory":
        monkeypatch.setattr(files, "IN_MEMORY", 10**9)
    return request.param


@pytest.fixture
def copy_of(clone, tmp_path):
    """A function: a copy of the clone that may be spoilt; without the README if it is not wanted."""

    def make(readme=True):
        folder = tmp_path / "copy"
        shutil.copytree(clone, folder)
        if not readme:
            (folder / "README.md").unlink()
        return folder

    return make


def spoil(folder, config, ids, column="image"):
    """Replace the pictures of some people by bytes that are none, or by nothing."""
    for file in (folder / config).glob("*.parquet"):
        table = pq.read_table(file)
        rows = table.to_pylist()
        for row in rows:
            if row["ID"] in ids:
                broken = ids[row["ID"]]
                row[column] = [broken, *row[column][1:]] if column == "images" else broken
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)


BROKEN = {"bytes": b"not a picture", "path": None}


# ------------------------------------------------------------------------------------------------ the real layout


@pytest.mark.parametrize("layout", ["README", "no README", "README without configs"])
def test_every_config_is_read_from_a_clone(clone, copy_of, layout, both_routes):
    folder = clone if layout == "README" else copy_of(readme=False)
    if layout == "README without configs":
        (folder / "README.md").write_text("---\nlicense: other\n---\n\n# MLLMU-Bench\n")
    assert config_names(folder) == sorted(CONFIGS)
    sizes = {}
    for config in CONFIGS:
        loaded = load_config(folder, config)
        sizes[config] = len(loaded)
        assert ("Directory" in loaded.column_names) == (config == "Full_Set")
        assert isinstance(
            loaded.features["images"].feature if config == "Test_Set" else loaded.features["image"], datasets.Image
        )
        assert loaded.info.config_name == config
    assert sizes["Test_Set"] == sizes["ft_Data"] == sizes["forget_15"] + sizes["retain_85"] == 20  # both shards


@pytest.mark.parametrize("ratio", [5, 10, 15])
def test_the_sets_of_a_clone(clone, ratio):
    benchmark = load_benchmark(clone, forget_ratio=ratio)
    assert len(benchmark.forget_ids) == ratio / 5 and set(benchmark.test["ID"]) == set(benchmark.forget_ids)
    assert sorted(benchmark.forget_ids + benchmark.retain_ids) == PEOPLE
    for task in TASKS:
        asked = evaluation_questions(benchmark.test, task, "multimodal")
        records = 5 if task == "classification" else 2
        assert len(asked) == records * sum(int(person) % 3 + 1 for person in benchmark.forget_ids)
    assert {q.person_id for q in evaluation_questions(benchmark.celebrity, "cloze", "text")} == {"001", "002"}
    image, text = (benchmark.training_questions("forget", modality) for modality in MODALITIES)
    assert [q.question for q in image][:3] == [record["Question"] for record in json.loads(metadata("001"))[:3]]
    assert len(image) == 3 * len(benchmark.forget_ids) and len(text) == 2 * len(benchmark.forget_ids)
    name = NAMES[text[0].person_id]
    assert [q.question for q in text][:2] == [f"Where was {name} born?", f"What is {name}'s job?"]


def test_struct_of_lists_and_numpy_records(clone):
    """`Sequence` features and pandas give other containers for the same records."""
    rows = load_config(clone, "forget_10")
    expected = [evaluation_questions(rows, task, "text") for task in TASKS]
    old = {"Type": datasets.Value("string"), "Question": datasets.Value("string"), "Ground_Truth": datasets.Value("string")}
    turned = [
        {"ID": row["ID"], "Mask_Task": {key: [r[key] for r in row["Mask_Task"]] for key in old}}
        for row in rows.remove_columns("image")
    ]
    features = datasets.Features({"ID": datasets.Value("string"), "Mask_Task": {k: datasets.List(v) for k, v in old.items()}})
    cloze = evaluation_questions(datasets.Dataset.from_list(turned, features=features), "cloze", "text")
    assert cloze == expected[TASKS.index("cloze")]
    numpy = rows.remove_columns("image").with_format("numpy")
    assert [evaluation_questions(numpy, task, "text") for task in TASKS] == expected


# ------------------------------------------------------------------------------------------------ pictures that are not there


def test_unreadable_pictures_are_named_and_left_out(copy_of, both_routes):
    folder = copy_of()
    benchmark = load_benchmark(folder, 15)
    broken, missing, whole = benchmark.forget_ids
    for config, column in (("forget_15", "image"), ("ft_Data", "image"), ("Test_Set", "images")):
        spoil(folder, config, {broken: BROKEN, missing: None}, column)
    benchmark = load_benchmark(folder, 15)
    asks = {
        "forget_15": lambda **how: evaluation_questions(benchmark.forget, "cloze", "multimodal", **how),
        "ft_Data": lambda **how: benchmark.training_questions("forget", "multimodal", **how),
    }
    for config, ask in asks.items():
        with pytest.warns(UserWarning) as caught:
            questions = ask()
        assert len(caught) == 1
        message = str(caught[0].message)
        assert message.startswith(f"2 of 3 pictures of {config} cannot be read and are left out, of ")
        assert broken in message and missing in message and "0x" not in message
        assert {q.person_id for q in questions} == {whole}
        with pytest.raises(ValueError, match="cannot read the image of person|has no image"):
            ask(unreadable="raise")
    with pytest.warns(UserWarning, match="pictures of Test_Set cannot be read"):
        views = evaluation_questions(benchmark.test, "generation", "multimodal")
    expected = {person: int(person) % 3 + 1 - (person != whole) for person in benchmark.forget_ids}
    assert {p: sum(q.person_id == p for q in views) for p in expected} == {p: 2 * n for p, n in expected.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # text reads no picture, so nothing is wrong with it
        assert len(benchmark.training_questions("forget", "text")) == 6
        assert len(evaluation_questions(benchmark.forget, "cloze", "text")) == 6


def test_nothing_but_unreadable_pictures_is_an_error(copy_of):
    folder = copy_of()
    spoil(folder, "forget_10", dict.fromkeys(PEOPLE, BROKEN))
    forget = load_config(folder, "forget_10")
    with pytest.raises(
        ValueError, match=r"cannot read the image of person \d+ of forget_10: not an image; fetch the file again"
    ):
        evaluation_questions(forget, "cloze", "multimodal")
    with pytest.raises(ValueError, match="unreadable='ignore' is unknown; use one of skip, raise"):
        evaluation_questions(forget, "cloze", "multimodal", unreadable="ignore")


# ------------------------------------------------------------------------------------------------ only what is needed


def test_text_alone_never_touches_a_picture(copy_of, tmp_path, both_routes):
    """Overwriting the bytes of the image columns in the files changes nothing, and no copy of them is made."""
    folder = copy_of()
    expected = load_benchmark(folder, 15)
    whole = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.arrow"))
    for file in folder.glob("*/*.parquet"):
        data = bytearray(file.read_bytes())
        groups = pq.ParquetFile(file).metadata
        for group in range(groups.num_row_groups):
            for index in range(groups.num_columns):
                column = groups.row_group(group).column(index)
                if column.path_in_schema.startswith("image"):
                    start = column.dictionary_page_offset or column.data_page_offset
                    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
        file.write_bytes(data)
    text = load_benchmark(folder, 15, modalities=("text",))
    for people in ("forget", "all"):
        assert text.training_questions(people, "text") == expected.training_questions(people, "text")
    for name, people in text.sets().items():
        assert not {"image", "images"} & set(people.column_names)
        for task in TASKS:
            assert evaluation_questions(people, task, "text") == evaluation_questions(expected.sets()[name], task, "text")
    assert (whole > 40 * PICTURE_BYTES) is (both_routes == "by the cache")
    assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.arrow")) == whole
    with pytest.raises(ValueError, match="has no column image; .* It was loaded without pictures or has none"):
        text.training_questions("forget", "multimodal")
    with pytest.raises(ValueError, match="cannot be read"):
        load_benchmark(folder, 15)


def test_only_the_test_pictures_of_the_forget_set_are_copied(clone, tmp_path):
    test = read_config(clone, "Test_Set", people=["003", "014"])
    assert test["ID"] == ["003", "014"]
    assert (
        sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.arrow")) < 5 * PICTURE_BYTES
    )  # one and three views


# ------------------------------------------------------------------------------------------------ other machines


def test_both_routes_give_the_same_rows(clone, monkeypatch):
    """Bytes of the pictures, types and order included; with and without pictures, and of some people alone."""
    for config in CONFIGS:
        for how in ({}, {"images": False}, {"people": PEOPLE[3:9]}):
            monkeypatch.setattr(files, "IN_MEMORY", 0)
            if how.get("people") and config in ("forget_5", "forget_10", "forget_15", "Retain_Set"):
                continue  # there may be nobody left
            cached = read_config(clone, config, **how)
            monkeypatch.setattr(files, "IN_MEMORY", 10**9)
            read = read_config(clone, config, **how)
            assert read.features == cached.features and not read.cache_files
            assert read.with_format("arrow")[:] == cached.with_format("arrow")[:]


def test_the_bundled_benchmark_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.undo()  # the default route
    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "cache")
    for modalities in (MODALITIES, ("text",)):
        load_benchmark("tiny", modalities=modalities)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written(clone, copy_of, tmp_path, monkeypatch):
    """Small files need none; for the others the message names the folder and the variable, not the files."""
    (tmp_path / "file").touch()  # nothing can be made below a file, not even by root
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    for images in (True, False):
        with pytest.raises(PermissionError, match="file.cache is where forget_10 of .* cannot be written .*; set HF_HOME"):
            read_config(clone, "forget_10", images=images)
    monkeypatch.setattr(files, "IN_MEMORY", 10**9)
    assert len(read_config(clone, "forget_10")) == 2


@pytest.mark.parametrize("name", ["[2026] course", "~who? *{x}", "Größe 文 100%20#1", "$HOME", "hf::x"])
def test_any_name_of_a_folder_is_just_a_name(clone, tmp_path, name, both_routes):
    if os.name == "nt" and set(name) & set('*?:'):
        pytest.skip("no name for a folder here")
    folder = tmp_path / name / "MLLMU-Bench"
    for config in ("forget_10", "ft_Data"):
        shutil.copytree(clone / config, folder / config)
    for readme in (False, True):
        if readme:
            shutil.copy(clone / "README.md", folder)
        for images in (True, False):
            assert len(read_config(folder, "ft_Data", images=images)) == 20
            assert read_config(folder, "forget_10", images=images)["ID"] == read_config(clone, "forget_10")["ID"]
        with pytest.raises(ValueError, match="has no config Full_Set that can be read"):
            read_config(folder, "Full_Set")


def test_the_readme_may_name_other_files(clone, tmp_path, both_routes):
    """Patterns of all the forms that the Hub takes; the types of the columns from the README where the files have none."""
    folder = tmp_path / "mine"
    (folder / "data").mkdir(parents=True)
    for shard, file in enumerate(sorted((clone / "Test_Set").iterdir())):
        table = pq.read_table(file).replace_schema_metadata(None)
        pq.write_table(table, folder / "data" / f"people-{shard}.parquet")
    forms = {
        "one": "data/people-*", "list": ["data/people-0.parquet", "data/people-1.parquet"],
        "splits": [{"split": "train", "path": "data/people-0*"}, {"split": "test", "path": "data/people-1*"}],
        "lists": [{"split": "train", "path": ["data/people-0*", "data/people-1*"]}],
    }  # fmt: skip
    features = read_config(clone, "Test_Set").features
    header = {
        "configs": [{"config_name": name, "data_files": form} for name, form in forms.items()],
        "dataset_info": [{"config_name": name, "features": features._to_yaml_list()} for name in forms],
    }
    (folder / "README.md").write_text(f"---\n{json.dumps(header)}\n---\n")
    assert config_names(folder) == sorted([*forms, "data"])
    for name in forms:
        rows = read_config(folder, name)
        assert rows["ID"] == (PEOPLE[:10] if name == "splits" else PEOPLE)
        assert rows.features == features


@pytest.mark.parametrize("elsewhere", ["https://example.org/x.parquet", "hf://a/b/x.json", "/etc/x.json", "../x.json"])
@pytest.mark.parametrize("together", [False, True])
def test_what_a_readme_names_elsewhere_is_neither_read_nor_fetched(clone, tmp_path, monkeypatch, elsewhere, together):
    asked = []

    def nobody(*arguments, **options):
        asked.append(arguments)
        raise OSError("no network")

    for place, name in ((socket, "getaddrinfo"), (socket.socket, "connect")):
        monkeypatch.setattr(place, name, nobody)
    for place in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    folder = tmp_path / "mine"
    shutil.copytree(clone / "forget_5", folder / "forget_5")
    configs = [
        {"config_name": "far", "data_files": [elsewhere] + ["forget_5/*.parquet"] * together},
        {"config_name": "near", "data_files": "forget_5/*.parquet"},
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    with pytest.raises(ValueError, match="names '.*', which is not in the folder, and nothing else is read or fetched"):
        read_config(folder, "far")
    with pytest.raises(ValueError, match="has no config absent that can be read"):
        read_config(folder, "absent")
    assert len(read_config(folder, "near")) == 1 and "far" in config_names(folder)
    assert asked == []


def test_modalities_are_checked():
    with pytest.raises(ValueError, match="modalities holds 'audio', which is unknown"):
        load_benchmark("tiny", modalities=("audio",))
    with pytest.raises(ValueError, match=r"modalities=\(\) must name at least one"):
        load_benchmark("tiny", modalities=())
    for wrong in ("text", None):
        with pytest.raises(TypeError, match="modalities=.* must be a tuple of names"):
            load_benchmark("tiny", modalities=wrong)


# ------------------------------------------------------------------------------------------------ the Hub


@pytest.fixture
def hub(clone):
    """A stub of the Hub that serves the clone as MLLMMU/MLLMU-Bench: its address, and a list of the bytes sent per file."""
    name, commit, sent = "MLLMMU/MLLMU-Bench", "a" * 40, []
    files = {path.relative_to(clone).as_posix(): path.read_bytes() for path in clone.rglob("*") if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, body, status=200, **headers):
            self.send_response(status)
            for key, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(key.replace("_", "-"), str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = unquote(urlparse(self.path).path)
            if path in (
                f"/api/datasets/{name}",
                f"/api/datasets/{name}/revision/main",
                f"/api/datasets/{name}/revision/{commit}",
            ):
                siblings = [{"rfilename": file} for file in files]
                return self.answer(json.dumps({"id": name, "sha": commit, "tags": [], "siblings": siblings}).encode())
            if path.startswith(tree := f"/api/datasets/{name}/tree/{commit}"):
                inside = f"{path.removeprefix(tree).strip('/')}/".lstrip("/")
                below = [file.removeprefix(inside) for file in files if file.startswith(inside)]
                entries = [
                    {"type": "file", "path": inside + file, "size": len(files[inside + file]), "oid": "b" * 40}
                    for file in below if "/" not in file
                ] + [
                    {"type": "directory", "path": inside + folder, "size": 0, "oid": "c" * 40}
                    for folder in sorted({file.split("/")[0] for file in below if "/" in file})
                ]  # fmt: skip
                return self.answer(json.dumps(entries).encode())
            for revision in ("main", commit):
                file = path.removeprefix(f"/datasets/{name}/resolve/{revision}/")
                if file in files:
                    body, last = files[file], len(files[file]) - 1
                    headers = {"ETag": f'"{len(body):064}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
                    if wanted := self.headers.get("Range"):
                        first, end = wanted.removeprefix("bytes=").split("-")
                        end = min(int(end or last), last)
                        headers["Content_Range"] = f"bytes {first}-{end}/{len(body)}"
                        body = body[int(first) : end + 1]
                    if self.command == "GET":
                        sent.append((file, len(body)))
                    return self.answer(body, 206 if wanted else 200, **headers)
            return self.answer(b"", 404, X_Error_Code="EntryNotFound")

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", sent
    server.shutdown()
    server.server_close()


def test_from_the_hub_too_only_what_is_needed_comes(clone, hub, tmp_path):
    """In a process of its own: the address of the Hub is read when its client is imported."""
    address, sent = hub
    program = (
        "import sys; from manu_utils.benchmark import load_benchmark as load\n"
        "b = load('MLLMMU/MLLMU-Bench', 15, modalities=sys.argv[1:])\n"
        "for m in sys.argv[1:]:\n"
        "    print(*[(q.person_id, q.question, q.answer) for q in b.training_questions('all', m)], sep='\\n')"
    )
    environment = os.environ | {
        "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    local = load_benchmark(clone, 15)
    taken = {}
    for modalities in (["text"], list(MODALITIES)):
        sent.clear()
        run = subprocess.run(
            [sys.executable, "-c", program, *modalities], env=environment, capture_output=True, text=True, timeout=300
        )
        assert run.returncode == 0, run.stderr
        expected = [str((q.person_id, q.question, q.answer)) for m in modalities for q in local.training_questions("all", m)]
        assert run.stdout.splitlines() == expected
        taken[modalities[0]] = [n for _, n in sent]
    pictures = PICTURE_BYTES * (20 + 20 + 40)  # ft_Data, forget and retain, the test views
    assert sum(taken["multimodal"]) > pictures
    # A footer, then a piece of text at a time with 64 KB read ahead, which is more than a picture only in this small clone.
    assert sum(taken["text"]) < pictures / 2 and max(taken["text"]) < 100_000


# ------------------------------------------------------------------------------------------------ what cannot be rewritten


def test_the_report_of_rewriting():
    questions = {
        "001": ["Who is this person?", "Where does the person in the image live?", "What is his job?", "Who is Eva?"],
        "002": ["What is the individual's job?"],
        "003": ["What is the name of this individual?", "What does the man in the picture do on the left?"],
    }
    rows = [
        {"ID": person, "metadata": json.dumps([{"Question": q, "Answer": "This is Anna Berg."} for q in asked]
            + [{"Additional_question": "Describe this person."}])}
        for person, asked in questions.items()
    ]  # fmt: skip
    report = rewriting_report(datasets.Dataset.from_list(rows))
    assert list(report.columns) == ["person_id", "question", "rewritten", "reason"]
    assert report[["person_id", "question", "reason"]].values.tolist()[:3] == [
        ["001", "Who is this person?", "asks for the name"],
        ["001", "What is his job?", "refers to no person in the picture"],
        ["001", "Who is Eva?", "refers to no person in the picture"],
    ]
    assert report.loc[3, "person_id"] == "002" and report.loc[3, "reason"].startswith("no name: no question asks for the name")
    assert report.loc[4, "reason"] == "asks for the name"
    assert report.loc[5, ["rewritten", "reason"]].tolist() == [
        "What does Anna Berg do on the left?", "still refers to a picture",
    ]  # fmt: skip
    assert len(report) == 6


def test_in_the_miniature_only_the_naming_questions_stay(benchmark):
    report = rewriting_report(benchmark.training)
    assert set(report["reason"]) == {"asks for the name"}
    both = [benchmark.training_questions("all", modality) for modality in MODALITIES]
    assert len(report) == len(both[0]) - len(both[1])


# ------------------------------------------------------------------------------------------------ other layouts


def test_an_unknown_layout_says_what_it_found(tmp_path):
    folder = tmp_path / "mine"
    for config in ("people", "places"):
        (folder / config).mkdir(parents=True)
        pq.write_table(pa.table({"ID": ["001"]}), folder / config / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="configs found: people, places. Expected are .*Full_Set.* CLEAR .* TOFU"):
        load_benchmark(folder, 5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="configs found: none"):
        load_benchmark(tmp_path / "empty", 5)


def test_a_clone_without_lfs(copy_of):
    folder = copy_of()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 238000000\n"
    (folder / "ft_Data" / "train-00000-of-00001.parquet").write_text(pointer)
    with pytest.raises(ValueError, match="is a pointer of Git LFS, not the data; run `git lfs pull`"):
        load_benchmark(folder, 5)


def test_a_damaged_file(copy_of, both_routes):
    folder = copy_of()
    file = folder / "forget_5" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-2000])
    for modalities in (MODALITIES, ("text",)):
        with pytest.raises(ValueError, match="forget_5 of .* cannot be read: .*; fetch the files again"):
            load_benchmark(folder, 5, modalities=modalities)


def test_training_questions_with_types_are_not_rewritten():
    records = [
        {"Type": "Image_Textual", "Question": "What is this?", "Answer": "A tree."},
        {"Type": "Pure_Text", "Question": "Where is Perth?", "Answer": "In Australia."},
    ]
    image = PIL.Image.new("RGB", (8, 8))
    rows = datasets.Dataset.from_list(
        [
            {"ID": "1", "metadata": json.dumps(records), "image": image},
            {"ID": "2", "metadata": json.dumps(records[1:]), "image": None},
        ]
    )
    assert [(q.person_id, q.question) for q in training_questions(rows, "multimodal")] == [("1", "What is this?")]
    assert [(q.person_id, q.question) for q in training_questions(rows, "text")] == [
        ("1", "Where is Perth?"),
        ("2", "Where is Perth?"),
    ]
