"""Published networks: snapshots that are built the way EDM builds them, and files that try to run code."""

import collections
import os
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.diffusion.interop import denoiser_from_edm, read_edm_pickle


def elsewhere(module: str, name: str) -> Callable[..., Any]:
    """A function that pickles under a name which cannot be imported here; calling it would be a fault."""

    def function(*arguments: Any) -> None:
        raise AssertionError(f"the reader must not call {module}.{name}")

    function.__module__, function.__name__, function.__qualname__ = module, name, name
    return function


reconstruct = elsewhere("torch_utils.persistence", "_reconstruct_persistent_obj")
old_scalar = elsewhere("numpy.core.multiarray", "scalar")  # where NumPy 1 has it


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


class Persistent(nn.Module):
    """Pickles like a class under EDM's `persistent_class`: source text, class name and attributes."""

    def __init__(self, class_name: str, module: nn.Module | None = None, **attributes: Any) -> None:
        super().__init__()
        self.class_name, self.attributes = class_name, attributes
        if module is not None:
            self._parameters, self._buffers = module._parameters, module._buffers
            self._modules = {name: published(child) for name, child in module._modules.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        state = {key: value for key, value in self.__dict__.items() if key not in ("class_name", "attributes")}
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "import os\nos.environ['CEDM_SOURCE_WAS_EXECUTED'] = '1'\n",
            "class_name": self.class_name,
            "state": {**state, **self.attributes},
        }
        return reconstruct, (meta,), None


def published(module: nn.Module | None) -> nn.Module | None:
    if isinstance(module, nn.ModuleDict):
        return nn.ModuleDict({name: published(child) for name, child in module.items()})
    return None if module is None else Persistent(type(module).__name__, module)


@pytest.fixture
def write_pickle(tmp_path: Path) -> Iterator[Callable[[object], Path]]:
    """Writes a pickle in a world where EDM's modules can be imported, to be read in one where they cannot."""

    def write(content: object) -> Path:
        with pytest.MonkeyPatch.context() as world:
            for function in (reconstruct, old_scalar):
                module = types.ModuleType(function.__module__)
                setattr(module, function.__name__, function)
                package = module.__name__.partition(".")[0]
                world.setitem(sys.modules, package, sys.modules.get(package, module))
                world.setitem(sys.modules, module.__name__, module)
            (tmp_path / "network.pkl").write_bytes(pickle.dumps(content, protocol=4))
        return tmp_path / "network.pkl"

    yield write
    assert "CEDM_SOURCE_WAS_EXECUTED" not in os.environ


def snapshot(golden) -> dict[str, Any]:
    """A training snapshot of EDM around the weights of a golden network."""
    network = dict(golden.arguments["network"])
    class_name = network.pop("model_type")
    numbers = {key: golden.arguments[key] for key in ("img_resolution", "img_channels", "label_dim")}
    denoiser = golden.denoiser()
    numpy_numbers = {"dropout": np.float64(network.pop("dropout")), "num_blocks": np.int64(network.pop("num_blocks"))}
    arguments = {**numbers, **network, **numpy_numbers, "augment_dim": golden.arguments["augment_dim"]}
    precond = Persistent(
        "EDMPrecond",
        _init_args=(),
        _init_kwargs={**arguments, "model_type": class_name, "use_fp16": False},
        **numbers,
        sigma_data=0.5,
    )
    model = Persistent(
        class_name, denoiser.model, _init_args=(), _init_kwargs={**arguments, "out_channels": numbers["img_channels"]}
    )
    precond._modules = {"model": model}
    loss = Persistent("EDMLoss", P_mean=-1.2, _init_args=(), _init_kwargs={})
    return {"ema": precond, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": {"path": "cifar10.zip"}}


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_a_snapshot_gives_the_published_denoiser(golden_network, write_pickle, name):
    golden = golden_network(name)
    published_network = read_edm_pickle(write_pickle(snapshot(golden)))
    assert published_network.tensors.keys() == golden.weights.keys()
    assert {**published_network.network, "dropout": 0.0} == golden.arguments["network"]

    denoiser = denoiser_from_edm(published_network)
    inputs = golden.inputs
    denoised = denoiser(inputs["noisy"], inputs["sigma"], inputs["class_labels"], inputs.get("augment_labels"))
    torch.testing.assert_close(denoised, golden.outputs["denoised"], rtol=1e-4, atol=1e-5)
    assert (denoiser.label_dim, denoiser.augment_dim) == (5, golden.arguments["augment_dim"])


@pytest.mark.parametrize(
    ("data", "network", "expected"),
    [
        ({"p_uncond": 0.1}, {}, 0.1),
        ({"p_uncond": np.float64(0.2)}, {"label_dropout": 0}, 0.2),
        ({"p_uncond": 0}, {}, 0.0),
        ({}, {"label_dropout": 0.3}, 0.3),
        ({}, {"label_dropout": 0}, 0.0),
        ({}, {}, None),
        ({"p_uncond": "often"}, {}, None),
        ({"p_uncond": float("nan")}, {}, None),
        (None, {}, None),
    ],
)
def test_label_dropout_is_known_or_not(golden_network, write_pickle, data, network, expected):
    """C-EDM hides labels in its data set, other networks hide them themselves; what neither tells is not 0."""
    content = snapshot(golden_network("ddpmpp"))
    content["dataset_kwargs"] = None if data is None else {**content["dataset_kwargs"], **data}
    arguments = content["ema"].attributes["_init_kwargs"]
    for module in (content["ema"], content["ema"]._modules["model"]):
        module.attributes["_init_kwargs"] = {k: v for k, v in arguments.items() if k != "label_dropout"} | network
    found = read_edm_pickle(write_pickle(content))
    assert found.label_dropout == expected
    denoiser_from_edm(found)


def test_snapshots_of_older_numpy_are_read(golden_network, write_pickle):
    content = snapshot(golden_network("ddpmpp"))
    number = Call(old_scalar, np.dtype("int64"), np.int64(2).tobytes())
    for module in (content["ema"], content["ema"]._modules["model"]):
        module.attributes["_init_kwargs"]["num_blocks"] = number
    assert read_edm_pickle(write_pickle(content)).network["num_blocks"] == 2


@pytest.mark.parametrize(
    ("function", "refused"),
    [
        (os.system, rf"{os.name}\.system"),
        (eval, r"builtins\.eval"),
        (exec, r"builtins\.exec"),
        (torch.load, r"torch\.serialization\.load"),
        (getattr, r"builtins\.getattr"),
        (collections.Counter, r"collections\.Counter"),
    ],
)
def test_other_names_are_refused_and_never_called(golden_network, write_pickle, tmp_path, function, refused):
    canary = tmp_path / "canary"
    content = snapshot(golden_network("ddpmpp"))
    content["dataset_kwargs"] = Call(function, f"touch {canary}" if function is os.system else "1")
    with pytest.raises(ValueError, match=rf"network\.pkl: refused: the file asks for {refused}"):
        read_edm_pickle(write_pickle(content))
    assert not canary.exists()


def test_functions_that_are_handed_over_stay_as_they_are(tmp_path):
    sets_attributes = b"ctorch._utils\n_rebuild_tensor_v2\nN}(V__defaults__\n(I1\ntu\x86b."
    (tmp_path / "network.pkl").write_bytes(sets_attributes)
    before = torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(ValueError, match=r"network\.pkl: refused: the file sets attributes"):
        read_edm_pickle(tmp_path / "network.pkl")
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("img_resolution", None, "not a readable EDM snapshot"),
        ("img_resolution", float("inf"), "not a readable EDM snapshot"),
        ("sigma_data", 0.0, "sigma_data=0"),
        ("img_channels", -1, "'img_channels': -1"),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused(golden_network, write_pickle, setting, value, message):
    content = snapshot(golden_network("ddpmpp"))
    content["ema"].attributes[setting] = value
    with pytest.raises(ValueError, match=message):
        denoiser_from_edm(read_edm_pickle(write_pickle(content)))


def test_weights_that_are_not_finite_are_refused(golden_network):
    golden = golden_network("ddpmpp")
    name = "model.map_layer0.bias"
    broken = {**golden.weights, name: golden.weights[name] * torch.nan}
    with pytest.raises(ValueError, match=r"model\.map_layer0\.bias are not finite"):
        denoiser_from_edm(golden.published(tensors=broken))


def test_code_in_the_bytes_of_a_tensor_does_not_run(golden_network, write_pickle, tmp_path):
    canary = tmp_path / "canary"
    content = snapshot(golden_network("ddpmpp"))
    content["evil"] = Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, f"touch {canary}"), protocol=2))
    with pytest.raises(ValueError, match=r"network\.pkl"):
        read_edm_pickle(write_pickle(content))
    assert not canary.exists()


@pytest.mark.parametrize("content", [{"net": 1}, [1, 2], {"ema": None}, {"ema": collections.OrderedDict()}])
def test_other_pickles_are_refused(write_pickle, content):
    with pytest.raises(ValueError, match=r"network\.pkl: expected an EDM snapshot"):
        read_edm_pickle(write_pickle(content))


def test_other_preconditionings_are_refused(golden_network, write_pickle):
    content = snapshot(golden_network("ddpmpp"))
    content["ema"].class_name = "VPPrecond"
    with pytest.raises(ValueError, match="found VPPrecond"):
        read_edm_pickle(write_pickle(content))


def test_numpy_scalars_hold_no_objects(golden_network, write_pickle):
    content = {"ema": Call(old_scalar, np.dtype("O"), b"12345678")}
    with pytest.raises(ValueError, match="NumPy scalar that holds a Python object"):
        read_edm_pickle(write_pickle(content))


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04\x95\x10"])
def test_files_that_are_no_pickle_are_refused(tmp_path, content):
    (tmp_path / "network.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"network\.pkl: not a readable EDM snapshot"):
        read_edm_pickle(tmp_path / "network.pkl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "UViT"}, "model_type is 'UViT'"),
        ({"encoder_type": "skip"}, "encoder_type='skip' is not 'standard'"),
        ({"embeding_type": "fourier"}, r"unknown settings \['embeding_type'\]"),
        ({"model_channels": 32}, "weights do not fit"),
        ({"model_channels": None}, "weights do not fit"),
        ({"channel_mult": 3}, "weights do not fit"),
    ],
)
def test_networks_that_this_project_lacks_are_refused(golden_network, change, message):
    golden = golden_network("ddpmpp")
    with pytest.raises(ValueError, match=message):
        denoiser_from_edm(golden.published(network={**golden.arguments["network"], **change}))


def test_a_file_of_a_terabyte_is_read_as_far_as_it_is_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").touch()
    os.truncate(tmp_path / "a.pkl", 10**12)
    with pytest.raises(ValueError, match="not a readable EDM snapshot"):
        read_edm_pickle(tmp_path / "a.pkl")
