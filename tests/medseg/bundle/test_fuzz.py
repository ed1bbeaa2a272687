"""Whatever JSON stands where in a bundle: it loads, or it is refused with a sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medseg.bundle.load import load_bundle
from medseg.errors import InvalidBundle
from tests.medseg.bundle import zoo
from tests.medseg.nnunet_folders import described, write

NAMES = ("image", "pred", "UNet", "Spacingd", "Compose", "RAS", "bilinear", "gaussian", "SCT:85756007", "true", "", "é")
TEXTS = st.sampled_from(
    (*NAMES, "@network_def", "@device", "@none", "@##x", "%network_def", "%a.json::b", "$1/0", "$[1]*3", "$numpy.bool")
)
LEAVES = st.none() | st.booleans() | st.integers(-3, 300) | st.floats(-1e3, 1e3) | TEXTS
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from((*NAMES, "_target_", "keys")), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of every value in a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


@pytest.fixture(scope="module", params=(zoo.spleen_like, zoo.wholebody_like, zoo.prostate_like, zoo.segresnet_like))
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("fuzz") / "bundle")


READ = (
    "network_def",
    "preprocessing",
    "inferer",
    "postprocessing",
    "pixdim",
    "network_data_format",
    "medseg",
    "version",
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_anywhere_loads_or_is_refused(sound: Path, data: st.DataObject) -> None:
    original = {name: (sound / "configs" / name).read_text() for name in ("inference.json", "metadata.json")}
    name = data.draw(st.sampled_from(sorted(original)))
    content = json.loads(original[name])
    place = data.draw(st.sampled_from([p for p in places(content) if p and p[0] in READ]))
    changed = copy.deepcopy(content)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = data.draw(JSON)
    try:
        (sound / "configs" / name).write_text(json.dumps(changed))
        bundle = load_bundle(sound)
    except InvalidBundle as error:
        assert error.key and error.why
    else:
        assert bundle.segments or bundle.out_channels == 1
    finally:
        for file, text in original.items():
            (sound / "configs" / file).write_text(text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of nnU-Net with all that is read of one."""
    folder = described(write(tmp_path_factory.mktemp("fuzz") / "model"), step=0.5, mirroring=[0, 1], folds=[0])
    kept = [{"labels_or_regions": [1, [2]]}]
    name = "remove_all_but_largest_component_from_segmentation"
    cleaning = {"postprocessing_fns": [name], "postprocessing_kwargs": kept}
    (folder / "postprocessing.json").write_text(json.dumps(cleaning))
    return folder


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_anywhere_in_a_folder_of_nnunet_loads_or_is_refused(trained: Path, data: st.DataObject) -> None:
    files = ("plans.json", "dataset.json", "postprocessing.json", "configs/metadata.json")
    file = trained / data.draw(st.sampled_from(files))
    original = file.read_text()
    changed = json.loads(original)
    place = data.draw(st.sampled_from([path for path in places(changed) if path]))
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = data.draw(JSON)
    try:
        file.write_text(json.dumps(changed))
        bundle = load_bundle(trained)
    except InvalidBundle as error:
        assert error.key and error.why
    else:
        assert bundle.segments
    finally:
        file.write_text(original)


@settings(max_examples=40, deadline=None)
@given(garbage=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_as_configuration_are_refused(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "configs").mkdir()
    (folder / "configs/metadata.json").write_bytes(garbage)
    (folder / "configs/inference.json").write_text("{}")
    with pytest.raises(InvalidBundle):
        load_bundle(folder)
