"""Pictures of one's own: what is read, what is refused, and that they are decoded once."""

import io
import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import composed_once

from scm.core.errors import UserError
from scm.data import image_folder, images, pictures
from scm.data.dataset import to_uint8
from scm.data.image_folder import ImageFolder, is_held_out

COMMON = {
    **{"name": "mine", "image_shape": [3, 8, 8], "held_out": 0.25, "skip_damaged": False},
    **{"sigma_data": 0.29, "sigma_data_tolerance": 0.8, "remedy": "set data.root=FOLDER"},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setattr(image_folder, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def picture(seed=0, size=(12, 10), mode="RGB"):
    """Noise, as a picture of this mode."""
    rng = np.random.default_rng(seed)
    values = rng.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def fill(folder, names, **how):
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed, **how).save(path)
    return folder


def numbered(n, pattern="{:03d}.png"):
    return [pattern.format(i) for i in range(n)]


def zipped(folder, path, top=""):
    with zipfile.ZipFile(path, "w") as file:
        for found in sorted(folder.rglob("*")):
            if found.is_file():
                file.write(found, top + found.relative_to(folder).as_posix())
    return path


def made(root, **changes):
    return ImageFolder(**{**COMMON, "root": str(root), **changes})


def same(a, b):
    return all(
        torch.equal(getattr(a, part), getattr(b, part))
        for part in ("train", "test", "train_labels", "test_labels")
    )


# ---------------------------------------------------------------- what is read


def test_a_folder_is_its_pictures(tmp_path):
    root = fill(tmp_path / "mine", numbered(20), size=(8, 8))
    data = made(root)
    assert len(data.train) + len(data.test) == 20 and data.num_classes == 1
    train = [name for name in numbered(20) if not is_held_out(name, 0.25)]
    assert len(data.train) == len(train) and len(data.test) > 0
    for mine, name in zip(data.train, train, strict=True):  # of that size: nothing is changed
        assert np.array_equal(mine.permute(1, 2, 0), Image.open(root / name))
    assert data.measured_sigma_data() == pytest.approx(0.29, abs=0.01)  # uniform: 1 / sqrt(12)


def test_pictures_are_scaled_to_cover_and_the_middle_is_cut_out():
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = (10, 200, 30)  # the middle third is all that is left of it
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "png")
    array = pictures.fitted(buffer.getvalue(), (3, 8, 8))
    assert array.shape == (3, 8, 8) and (array[:, :, 3:5] == [[[10]], [[200]], [[30]]]).all()


def test_scaling_down_takes_means_and_not_single_pixels():
    """A fine chequerboard becomes grey; without antialiasing it would stay black and white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(board).save(buffer, "png")
    array = pictures.fitted(buffer.getvalue(), (1, 8, 8)).astype(int)
    assert np.abs(array - 127).max() <= 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_every_mode_have_the_asked_channels(mode, channels):
    buffer = io.BytesIO()
    picture(3, mode=mode).save(buffer, "png")
    array = pictures.fitted(buffer.getvalue(), (channels, 8, 8))
    assert array.shape == (channels, 8, 8) and array.dtype == np.uint8
    if channels == 3 and mode in ("1", "L", "LA"):
        assert (array[0] == array[1]).all() and (array[0] == array[2]).all()


def test_what_can_be_seen_through_is_laid_on_white():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    palette = Image.new("P", (8, 8), 0)
    for image, expected in ((clear, 255), (half, 127), (palette, 255)):
        buffer = io.BytesIO()
        image.save(buffer, "png", **({"transparency": 0} if image is palette else {}))
        assert (pictures.fitted(buffer.getvalue(), (3, 8, 8)) == expected).all()


def test_a_photograph_is_turned_as_its_camera_says():
    upright = Image.new("RGB", (8, 8), "black")
    upright.paste("white", (0, 0, 8, 4))  # the upper half
    turned, buffer = upright.transpose(Image.Transpose.ROTATE_180), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: turned by 180 degrees
    turned.save(buffer, "jpeg", exif=exif, quality=95)
    array = pictures.fitted(buffer.getvalue(), (3, 8, 8))
    assert array[:, :3].min() > 200 and array[:, 5:].max() < 50


def test_mixed_sizes_kinds_and_other_files(tmp_path, caplog):
    root = fill(tmp_path / "mine", numbered(9), size=(30, 9))
    fill(root, numbered(9, "{:03d}.JPG"), size=(9, 31))
    fill(root, numbered(3, "deep/er/{:03d}.jpeg"), size=(8, 8))
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"no picture")
    for name in numbered(18, "deep/more{:03d}.png"):  # all into one sub-folder
        fill(root, [name])
    for path in list(root.glob("*.png")) + list(root.glob("*.JPG")):
        path.rename(root / "deep" / path.name)
    data = made(root)
    assert len(data.train) + len(data.test) == 39 and data.num_classes == 1


def test_sub_folders_are_classes(tmp_path):
    root = fill(tmp_path / "mine", [*numbered(12, "b/{:03d}.png"), *numbered(12, "a/{:03d}.png")])
    data = made(root)
    assert data.classes == ["a", "b"] and data.num_classes == 2
    held = [name for name in numbered(12, "b/{:03d}.png") if is_held_out(name, 0.25)]
    assert int(data.test_labels.sum()) == len(held)
    assert data.train_labels.tolist() == sorted(data.train_labels.tolist())  # by their names


def test_pictures_beside_sub_folders_are_refused(tmp_path):
    root = fill(tmp_path / "mine", [*numbered(3, "a/{:03d}.png"), "lost.png"])
    with pytest.raises(UserError, match=r"mine: lost\.png lies beside sub-folders"):
        made(root)


@pytest.mark.parametrize("top", ["", "mine/"])
def test_a_zip_is_its_folder(tmp_path, top):
    root = fill(tmp_path / "mine", [*numbered(9, "a/{:03d}.png"), *numbered(9, "b/ü{:03d}.jpg")])
    archive = zipped(root, tmp_path / "mine.zip", top)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/a/._000.png", b"no picture")
    assert same(made(root), made(archive))


def test_a_name_in_unicode_counts_as_its_composed_form(tmp_path):
    """macOS takes letters apart; the same picture is held out there or not, as here."""
    composed, apart = "\u00fcber \u96ea.png", "u\u0308ber \u96ea.png"
    sets = []
    for place, name in (("composed", composed), ("apart", apart)):
        root = fill(tmp_path / place, [*numbered(12), name])
        sets.append(made(root, held_out=0.5))
    assert same(*sets)


def test_which_are_held_out_stays_when_others_are_added():
    names = numbered(4000)
    golden = [False, False, True, True, True, True, True, False]  # on every machine
    assert [is_held_out(name, 0.5) for name in names[:8]] == golden
    held = [is_held_out(name, 0.1) for name in names]
    assert sum(held) == pytest.approx(400, abs=60)
    more = [is_held_out(name, 0.2) for name in names]
    assert all(b for a, b in zip(held, more, strict=True) if a)  # a larger share holds them too


# ---------------------------------------------------------------- decoded once


def test_the_second_time_nothing_is_decoded(tmp_path, monkeypatch, cache):
    root = fill(tmp_path / "mine", numbered(20))
    first = made(root)
    monkeypatch.setattr(image_folder, "decoded", None)
    assert same(first, made(root))
    assert sorted(path.suffix for path in cache.iterdir()) == [".bin", ".json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda root: fill(root, ["new.png"]) and {},
        lambda root: picture(99).save(root / "000.png") or {},
        lambda root: {"held_out": 0.5},
        lambda root: {"image_shape": [1, 8, 8]},
        lambda root: {"image_shape": [3, 8, 16]},
    ],
    ids=["another file", "another picture", "held_out", "channels", "size"],
)
def test_another_file_or_option_is_decoded_anew(tmp_path, change):
    root = fill(tmp_path / "mine", numbered(20))
    first = made(root)
    assert not same(first, made(root, **change(root)))


@pytest.mark.parametrize("part", [".bin", ".json"])
def test_a_cache_that_is_not_whole_is_made_anew(tmp_path, cache, part):
    root = fill(tmp_path / "mine", numbered(20))
    first = made(root)
    expected = first.train.clone()
    (file,) = cache.glob(f"*{part}")
    file.write_bytes(file.read_bytes()[:-9])
    assert torch.equal(made(root).train, expected)
    file.unlink()
    assert torch.equal(made(root).train, expected)


def test_a_long_decoding_tells_its_rate(tmp_path, monkeypatch, caplog):
    root = fill(tmp_path / "mine", numbered(20))
    shown = image_folder.shown
    monkeypatch.setattr(image_folder, "shown", lambda *args: shown(*args, every=0))
    with caplog.at_level(logging.INFO):
        made(root)
    lines = [line for line in caplog.messages if "ETA" in line]
    assert len(lines) == 20 and lines[-1].startswith("mine: 20 of 20 images, ")


# ---------------------------------------------------------------- what is refused


def test_no_folder_and_no_pictures_are_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.root=null: set data\.root=FOLDER"):
        ImageFolder(**COMMON, root=None)
    with pytest.raises(UserError, match=r"nowhere: no such folder or zip file; set data\.root"):
        made(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: there are no pictures in it \(\.png, .*data\.ro"):
        made(tmp_path / "empty")
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"no\.zip: not a zip file"):
        made(tmp_path / "no.zip")


DAMAGE = {
    "cut.png": lambda data: data[: len(data) // 2],
    "text.png": lambda data: b"<html>not found</html>",
    "none.png": lambda data: b"",
}


def damage(root):
    for name, how in DAMAGE.items():
        picture().save(root / name)
        (root / name).write_bytes(how((root / name).read_bytes()))
    return root


@pytest.mark.parametrize("as_zip", [False, True])
def test_damaged_pictures_are_named_and_left_out_only_when_asked(tmp_path, caplog, cache, as_zip):
    root = damage(fill(tmp_path / "mine", numbered(20)))
    root = zipped(root, tmp_path / "mine.zip") if as_zip else root
    with pytest.raises(UserError) as caught:
        made(root)
    said = str(caught.value)
    assert "\n" not in said and "3 damaged images" in said and "of 23" in said
    assert all(name in said for name in DAMAGE) and "data.skip_damaged=true" in said
    assert list(cache.iterdir()) == []
    for _ in range(2):  # decoded, and out of the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            data = made(root, skip_damaged=True)
        assert len(data.train) + len(data.test) == 20
        (line,) = [line for line in caplog.messages if "left out" in line]
        assert "3 damaged images" in line and all(name in line for name in DAMAGE)
    train = [name for name in numbered(20) if not is_held_out(name, 0.25)]
    assert len(data.train) == len(train)


def test_a_huge_picture_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    root = fill(tmp_path / "mine", numbered(5))
    Image.new("1", (400, 300)).save(root / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 110_000)
    loaded = []
    load = Image.Image.load
    monkeypatch.setattr(
        Image.Image, "load", lambda self: loaded.append(self.size) or load(self), raising=True
    )
    said = r"huge\.png \(120,000 pixels, more than PIL's limit 110,000\)"
    with pytest.raises(UserError, match=said):
        made(root)
    assert (400, 300) not in loaded
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)  # more than twice: PIL's own error
    with pytest.raises(UserError, match=r"huge\.png \(Image size \(120000 pixels\) exceeds"):
        made(root)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    archive = tmp_path / "mine.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.png", bytes(2**20))
    monkeypatch.setattr(pictures, "LARGEST_FILE", 2**20 - 1)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(UserError, match=r"bomb\.png \(unpacks to 1,048,576 bytes, more than"):
        made(archive)


def test_names_in_a_zip_lead_nowhere(tmp_path):
    root = fill(tmp_path / "mine", numbered(9))
    archive = tmp_path / "mine.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in numbered(9):
            file.write(root / name, f"../../{name}")
            file.write(root / name, f"/etc/{name}")
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    data = made(archive)
    assert len(data.train) + len(data.test) == 18
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


def test_pictures_of_more_than_8_bits_are_named(tmp_path):
    root = fill(tmp_path / "mine", numbered(9))
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(root / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png \(mode I;16: not 8 bits a channel\)"):
        made(root)


def test_a_set_of_which_nothing_is_held_out_is_refused(tmp_path):
    name = next(name for name in numbered(50) if not is_held_out(name, 0.25))
    root = fill(tmp_path / "mine", [name])
    with pytest.raises(UserError, match=r"none of 1 images is held out; add images, or change"):
        made(root)
    name = next(name for name in numbered(50) if is_held_out(name, 0.25))
    with pytest.raises(UserError, match=r"none of 1 images is to train with"):
        made(fill(tmp_path / "other", [name]))


def test_another_sigma_data_is_refused_with_the_one_to_set(tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    for i in range(12):
        Image.new("RGB", (9, 9), (120, 130, 128)).save(root / f"{i}.png")
    with pytest.raises(UserError, match=r"data\.sigma_data=0\.29: mine measures 0\.0\d+ .*; set"):
        made(root)


# ---------------------------------------------------------------- batches


def test_fewer_images_than_a_batch_or_an_evaluation_asks_for(tmp_path):
    data = made(fill(tmp_path / "mine", numbered(9)))
    n = len(data.train)
    x0, labels = data.batch(0, 0, 3 * n)
    assert len(x0) == len(labels) == 3 * n
    counts = torch.tensor(data.indices(0, 0, 3 * n)).bincount(minlength=n)
    assert (counts == 3).all()
    held = data.test_batch(512).x0
    assert len(held) == 512 and torch.equal(to_uint8(held[len(data.test)]), data.test[0])


def test_a_large_set_stays_on_the_cpu_and_gives_the_same_batches(tmp_path, monkeypatch):
    data = made(fill(tmp_path / "mine", numbered(20)))
    moved = data.to("meta")
    assert moved.train.device.type == "meta"
    monkeypatch.setattr(images, "LARGEST_ON_DEVICE", data.train.nbytes - 1)
    stays = data.to("meta")
    assert stays.train.device.type == stays.train_labels.device.type == "cpu"
    assert stays.test.device.type == "meta"  # it is small
    batch = stays.batch(0, 0, 4)
    assert batch.x0.device.type == batch.labels.device.type == "meta"
    with pytest.raises(UserError, match="too many for a mean over all of them"):
        stays.training_set()


def test_flips_follow_from_seed_and_step(tmp_path):
    root = fill(tmp_path / "mine", numbered(40))
    plain, flipped = made(root), made(root, horizontal_flips=True)
    mirrored, kinds = 0, set()
    for step in range(20):
        a, b = plain.batch(1, step, 8).x0, flipped.batch(1, step, 8).x0
        turned = (b == a.flip(-1)).flatten(1).all(1)
        assert (turned | (b == a).flatten(1).all(1)).all()
        mirrored += int(turned.sum())
        kinds.add(tuple(turned.tolist()))
    assert mirrored == pytest.approx(80, abs=25) and len(kinds) > 10  # each step has its own
    again = flipped.batch(1, 13, 8).x0  # after other steps
    flipped.batch(1, 2, 8)
    assert torch.equal(again, flipped.batch(1, 13, 8).x0)
    other = flipped.batch(2, 13, 8).x0
    assert not torch.equal(again, other)
    whole = flipped.training_set()
    assert len(whole.x0) == len(whole.labels) == 2 * len(flipped.train)
    assert torch.equal(whole.x0[len(flipped.train) :], plain.training_set().x0.flip(-1))


def test_the_config_is_the_classes_arguments(tmp_path):
    root = fill(tmp_path / "mine", numbered(9))
    config = composed_once(("data=image_folder", f"data.root={root}", "data.image_shape=[1,8,8]"))
    assert config.data.root == str(root) and config.data.skip_damaged is False


def test_facts_of_the_cache_are_json(tmp_path, cache):
    made(fill(tmp_path / "mine", numbered(9)))
    (file,) = cache.glob("*.json")
    facts = json.loads(Path(file).read_text())
    assert len(facts["names"]) == 9 and facts["damaged"] == []
