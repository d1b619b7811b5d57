"""Pictures hold no pixels until somebody looks, every kind of file becomes the RGB that one sees, and odd sizes are named."""

import copy
import io
import pickle

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from datasets import Dataset

from manu_utils.benchmark import pictures
from manu_utils.benchmark.pictures import Picture, as_rgb, checked_size, open_rgb, readable_size
from manu_utils.benchmark.questions import evaluation_questions, training_questions
from manu_utils.benchmark.records import Question
from manu_utils.models.encoding import batches, encode
from manu_utils.models.prefix_tree import shared_batches


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def noise():
    rng = np.random.default_rng(0)
    return PIL.Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))


@pytest.fixture
def decoded(monkeypatch):
    """A list with one entry for each time that a file was decoded for its pixels."""
    done, plain = [], pictures.open_rgb
    pictures._kept.clear()

    def counting(data):
        done.append(len(data))
        return plain(data)

    monkeypatch.setattr(pictures, "open_rgb", counting)
    return done


# ------------------------------------------------------------------------------------------------ a picture


def test_a_picture_is_a_pil_image_without_pixels(noise):
    data = encoded(noise)
    picture = Picture(lambda: data, readable_size(data), key=1)
    other = Picture(lambda: data, (60, 40), key=2)
    assert isinstance(picture, PIL.Image.Image) and (picture.mode, picture.size) == ("RGB", (60, 40))
    for look in (
        lambda image: image.tobytes(), lambda image: np.array(image).tobytes(), lambda image: image.getpixel((3, 5)),
        lambda image: image.load()[3, 5], lambda image: image.resize((7, 7)).tobytes(), lambda image: image.copy().tobytes(),
        lambda image: image.convert("L").tobytes(), lambda image: image.crop((1, 1, 9, 9)).tobytes(),
        lambda image: image._repr_png_(), lambda image: copy.deepcopy(image).tobytes(),
        lambda image: pickle.loads(pickle.dumps(image)).tobytes(), lambda image: [band.tobytes() for band in image.split()],
    ):  # fmt: skip
        assert look(picture) == look(noise)
        assert other.getpixel((0, 0)) == noise.getpixel((0, 0))  # two take turns
    assert picture._im is None


def test_the_pictures_used_last_are_kept_up_to_a_number_of_pixels(decoded, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_KEPT", 40)

    def of(grey, side):
        data = encoded(PIL.Image.new("RGB", (side, side), (grey,) * 3))
        return Picture(lambda: data, (side, side), key=grey)

    def shown(*greys):
        """How many of these were decoded, one after the other."""
        before = len(decoded)
        assert [some[grey].getpixel((0, 0))[0] for grey in greys] == list(greys)
        return len(decoded) - before

    some = {grey: of(grey, 4) for grey in (1, 2, 3)} | {9: of(9, 20)}
    assert shown(1, 2, 1, 2) == 2  # 32 pixels
    assert shown(1, 3, 1) == 1 and shown(2) == 1  # a third is one too many: 2 goes
    assert shown(9, 9) == 1 and shown(1, 2) == 2  # a large one is kept alone
    assert sum(image.width * image.height for image in pictures._kept.values()) <= 40


def test_drawing_on_a_picture_gives_it_its_own_pixels(noise):
    data = encoded(noise)
    one, two = (Picture(lambda: data, (60, 40), key="same") for _ in "ab")
    PIL.ImageDraw.Draw(one).rectangle((0, 0, 5, 5), fill="red")
    one.putpixel((9, 9), (1, 2, 3))
    assert one.getpixel((0, 0)) == one.decode().getpixel((0, 0)) == (255, 0, 0) and one.getpixel((9, 9)) == (1, 2, 3)
    assert two.tobytes() == noise.tobytes() and one.key != two.key
    two.thumbnail((30, 30))
    assert two.size == np.array(two).shape[1::-1] == (30, 20)


# ------------------------------------------------------------------------------------------------ decoded when asked


def faces(shades, records=3):
    """A set with a picture and some multimodal cloze questions for each shade."""
    asked = [{"Type": "Image_Textual", "Question": f"This person has {i} __.", "Ground_Truth": "cats"} for i in range(records)]
    return Dataset.from_list(
        [
            {"ID": f"{i:03}", "image": encoded(PIL.Image.new("RGB", (96, 96), (shade, 0, 0))), "Mask_Task": asked,
             "Generation_Task": asked}
            for i, shade in enumerate(shades)
        ]
    )  # fmt: skip


def test_each_picture_of_a_batch_is_decoded_once(tiny_model, decoded):
    dataset = faces([0, 50, 100, 150])
    looked = []
    for _ in range(2):
        questions = evaluation_questions(dataset, "cloze", "multimodal")
        looked.append(len(decoded))
    assert looked[0] == looked[1] == 4  # that a PNG can be read is tried once for all calls
    mixed = questions[::3] + questions[1::3] + questions[2::3]
    for make in (batches, shared_batches):
        decoded.clear()
        pictures._kept.clear()
        for indices, _ in make(mixed, tiny_model[1], 64, with_answer=False):
            assert len(indices) == 12
        assert len(decoded) in ((4, 5) if make is shared_batches else (4,))  # one for its number of tokens
    assert all(question.image._im is None for question in questions)


def test_pictures_and_their_pixels_give_the_same_batches(tiny_model):
    questions = evaluation_questions(faces([0, 50, 100, 150, 200]), "cloze", "multimodal")
    own = {id(q.image): q.image.copy() for q in questions}
    plain = [Question(q.person_id, q.question, q.answer, own[id(q.image)], q.task) for q in questions]
    for make in (batches, shared_batches):
        for size in (2, 64):
            pairs = zip(make(questions, tiny_model[1], size, True), make(plain, tiny_model[1], size, True), strict=True)
            for (indices, batch), (same, expected) in pairs:
                assert indices == same and batch.keys() == expected.keys()
                assert all(batch[key].equal(expected[key]) for key in batch)


def test_questions_of_one_call_share_a_picture_and_calls_do_not():
    dataset = faces([0, 50])
    cloze, generation = (evaluation_questions(dataset, task, "multimodal") for task in ("cloze", "generation"))
    assert len({id(q.image) for q in cloze}) == 2 and len({q.image.key for q in cloze + generation}) == 2
    assert not {id(q.image) for q in cloze} & {id(q.image) for q in generation}


def test_a_picture_outlives_its_dataset_and_is_never_taken_for_another():
    shades = [10, 60, 110]
    for shade in shades:  # sets that are gone before the next comes may have its place in memory
        (question,) = evaluation_questions(faces([shade], records=1), "cloze", "multimodal")
        assert question.image.getpixel((0, 0)) == (shade, 0, 0)


@pytest.mark.parametrize("views", [1, 5])
def test_the_map_of_a_file_on_disk_is_opened_anew(tmp_path, monkeypatch, views):
    """After so many bytes, however many pictures a row has: what was read of a map stays in memory."""
    rows = faces(range(0, 250, 10))
    files = rows["image"]
    rows = rows.remove_columns("image").add_column("images", [[file] * views for file in files])
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    dataset = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path)).select(range(24, -1, -1))
    monkeypatch.setattr("manu_utils.benchmark.rows.BYTES_OF_ONE_MAP", 4 * min(map(len, files)))
    questions = evaluation_questions(dataset, "cloze", "multimodal")
    maps = []  # [table, pictures read of it]
    for question, shade in zip(questions[:: 3 * views], range(240, -1, -10), strict=True):
        assert question.image.getpixel((0, 0)) == (shade, 0, 0)
        table = question.image._read.func.__self__.rows
        if not maps or maps[-1][0] is not table:
            maps.append([table, 0])
        maps[-1][1] += views
    assert len(maps) > 1 and max(n for _, n in maps) < 4 + views


# ------------------------------------------------------------------------------------------------ kinds of files


def test_16_bits_and_floats_are_scaled():
    ramp = np.linspace(0, 1, 256).reshape(16, 16)
    expected = np.rint(ramp * 255).astype(np.uint8)
    for kind, array in (("PNG", np.rint(ramp * 65535).astype(np.uint16)), ("TIFF", np.rint(ramp * 65535).astype(np.uint16)),
                        ("TIFF", ramp.astype(np.float32)), ("TIFF", (ramp * 255).astype(np.float32))):  # fmt: skip
        image = open_rgb(encoded(PIL.Image.fromarray(array), kind))
        assert image.mode == "RGB" and np.abs(np.array(image)[..., 0].astype(int) - expected).max() <= 1
    for array in (np.full((4, 4), -1.0), np.full((4, 4), 1e6), np.full((4, 4), np.nan), np.full((4, 4), 1.02)):
        with pytest.raises(ValueError, match="its pixels are floats from .* whose black and white are not known"):
            readable_size(encoded(PIL.Image.fromarray(array.astype(np.float32)), "TIFF"))
    with pytest.raises(ValueError, match="its pixels are 32-bit integers"):
        readable_size(encoded(PIL.Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)), "TIFF"))


def test_what_is_transparent_is_white():
    clear = PIL.Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 255, 255))
    clear.putpixel((1, 0), (0, 0, 0, 128))
    palette = clear.convert("P")
    palette.info["transparency"] = palette.getpixel((3, 3))
    keyed = encoded(PIL.Image.new("RGB", (4, 4), (9, 9, 9)), transparency=(9, 9, 9))
    grey = PIL.Image.new("LA", (4, 4), (7, 0))
    for data in (encoded(clear), encoded(clear, "WEBP", lossless=True), encoded(palette), keyed, encoded(grey)):
        assert open_rgb(data).getpixel((3, 3)) == (255, 255, 255)
    image = open_rgb(encoded(clear))
    assert image.getpixel((0, 0)) == (0, 0, 255) and 120 < image.getpixel((1, 0))[0] < 135


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB"])
def test_other_modes_look_as_they_do(mode, noise):
    image = noise.convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert open_rgb(encoded(image, kind)).tobytes() == image.convert("RGB").tobytes()
    assert as_rgb(noise) is noise
    other = noise.convert("YCbCr")  # of which some versions of PIL write a TIFF that they cannot read
    assert as_rgb(other).tobytes() == other.convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_turns_a_picture_upright(kind, noise):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise, kind, exif=exif)
    assert readable_size(data) == open_rgb(data).size == (40, 60)


def test_odd_sizes_are_refused():
    for size in ((0, 0), (0, 9), (40, 1), (1, 4000), (100, 3), (60_000, 60_000), (8000, 8000)):
        with pytest.raises(ValueError, match=f"it has {size[0]} x {size[1]} pixels; "):
            checked_size(size)
    for size in ((2, 2), (40, 2), (48, 96), (7000, 7000)):
        checked_size(size)
    with pytest.raises(ValueError, match="person 001: the image cannot be used: it has 40 x 1 pixels"):
        Question("001", "Who?", "Anna Berg", PIL.Image.new("RGB", (40, 1)), "training")


def test_a_bomb_and_odd_pictures_are_named_and_left_out():
    bomb = bytearray(encoded(PIL.Image.new("1", (8, 8))))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # the size in the header of a PNG
    row = faces([1]).to_list()[0]
    strange = [bytes(bomb), encoded(PIL.Image.new("RGB", (40, 1))), encoded(PIL.Image.new("RGB", (1, 4000))), b"", None,
               encoded(PIL.Image.new("RGB", (9, 9)), "JPEG")[:-200]]  # fmt: skip
    dataset = Dataset.from_list([row] + [row | {"ID": f"9{i:02}", "image": data} for i, data in enumerate(strange)])
    with pytest.warns(
        UserWarning, match="6 of 7 pictures of the set cannot be read and are left out, of 900, 901, .*person 900"
    ):
        questions = evaluation_questions(dataset, "cloze", "multimodal")
    assert {question.person_id for question in questions} == {"000"}
    with pytest.raises(ValueError, match="image of person 901 of .*: it has 40 x 1 pixels; each side needs 2"):
        evaluation_questions(dataset.select([2]), "cloze", "multimodal")


def test_images_of_ones_own_are_converted_in_batches(tiny_model):
    red = PIL.Image.new("RGBA", (96, 96), (255, 0, 0, 0))
    white = PIL.Image.new("RGB", (96, 96), "white")
    batch, expected = (
        encode([Question("001", "Who?", "Anna Berg", image, "training")], tiny_model[1], with_answer=False)
        for image in (red, white)
    )
    assert batch["pixel_values"].equal(expected["pixel_values"])
    dark = PIL.Image.fromarray(np.full((9, 9), -1, dtype=np.float32))
    with pytest.raises(ValueError, match="person 001: the image cannot be used: its pixels are floats from -1 to -1"):
        encode([Question("001", "Who?", "Anna Berg", dark, "training")], tiny_model[1], with_answer=False)


def test_training_questions_keep_pictures_encoded(benchmark, decoded):
    questions = training_questions(benchmark.training.select(range(5)), "multimodal")
    decoded.clear()
    assert {question.modality for question in questions} == {"multimodal"} and len({id(q.image) for q in questions}) == 5
    assert not decoded and all(question.image._im is None for question in questions)
