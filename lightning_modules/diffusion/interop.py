"""Denoisers from networks published with EDM and its descendants.

Their snapshots are pickles of classes and source text, which can run any code when loaded in the ordinary way.
`read_edm_pickle` takes tensors and settings out of them with an unpickler that knows a handful of harmless names and
refuses all others; the source text is never executed.
"""

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_modules.diffusion.denoiser import INTERFACE, Denoiser, refuse_promises
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.objective import EDMObjective
from storage.bounds import refuse_inflating

# What the published constructors take where a network's dictionary leaves it out: settings that are free,
FREE = {
    "SongUNet": NetworkSettings("ddpmpp", 128, [1, 2, 2, 2], num_blocks=4, attn_resolutions=[16], dropout=0.10),
    "DhariwalUNet": NetworkSettings("adm", 192, [1, 2, 3, 4], num_blocks=3, attn_resolutions=[32, 16, 8], dropout=0.10),
}
# and settings that tell our architectures apart.
FIXED: dict[str, dict[str, Any]] = {
    "SongUNet": {
        "channel_mult_emb": 4,
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": [1, 1],
    },
    "DhariwalUNet": {"channel_mult_emb": 4},
}
NCSNPP = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"}
ARCHITECTURES = {
    "ddpmpp": ("SongUNet", FIXED["SongUNet"]),
    "ncsnpp": ("SongUNet", {**FIXED["SongUNet"], **NCSNPP, "resample_filter": [1, 3, 3, 1]}),
    "adm": ("DhariwalUNet", FIXED["DhariwalUNet"]),
}


class PublishedNetwork(NamedTuple):
    """A published network, taken apart.

    Attributes:
        tensors: Weights and buffers under their published names (`model.enc.32x32_conv.weight`, ...), any float dtype.
        img_resolution, img_channels, label_dim, augment_dim: As of `Denoiser`.
        network: The published settings: `model_type`, `model_channels`, `channel_mult`, `embedding_type`, ...
        sigma_data: Standard deviation of the data.
        p_uncond: Share of labels that the data set of its training hid, as C-EDM's does; None: not told.
    """

    tensors: dict[str, Tensor]
    img_resolution: int
    img_channels: int
    label_dim: int
    augment_dim: int
    network: dict[str, Any]
    sigma_data: float = 0.5
    p_uncond: float | None = None

    @property
    def label_dropout(self) -> float | None:
        """Share of labels hidden in training, by the network or its data set; None: the file does not tell."""
        told = [share for share in (share_of(self.network.get("label_dropout")), self.p_uncond) if share is not None]
        return max(told, default=None)


def denoiser_from_edm(published: PublishedNetwork) -> Denoiser:
    """The denoiser with published weights, in evaluation mode.

    Raises:
        ValueError: The network is none that this project has, or the weights do not fit it.
    """
    network, sigma_data = published.network, published.sigma_data
    model_type = network.get("model_type")
    if model_type not in FREE:
        raise ValueError(f"model_type is {model_type!r}; this project has {[*FREE]}")
    if unknown := [key for key in network if key not in known_settings(model_type) and key != "model_type"]:
        raise ValueError(f"unknown settings {unknown} of a {model_type}; expected some of {known_settings(model_type)}")
    free = {key: value for key, value in network.items() if key in asdict(FREE[model_type])}
    architecture = _architecture({**FIXED[model_type], **network})
    sizes: dict[str, Any] = {key: getattr(published, key) for key in INTERFACE}
    if min(sizes["img_resolution"], sizes["img_channels"]) < 1 or not 0 < sigma_data < math.inf:
        raise ValueError(f"{sizes}, {sigma_data=}: expected numbers above 0")
    try:
        settings = replace(FREE[model_type], architecture=architecture, **free)
        refuse_promises(asdict(settings), sizes, published.tensors)
        denoiser = Denoiser(settings, **sizes, objective=EDMObjective(sigma_data=sigma_data))
        denoiser.load_state_dict({name: tensor.float() for name, tensor in published.tensors.items()})
    except Exception as error:  # whatever settings of the wrong kind end in
        raise ValueError(f"the weights do not fit the settings of this {model_type}: {error}") from error
    if broken := [name for name, tensor in denoiser.state_dict().items() if not tensor.isfinite().all()]:
        raise ValueError(f"the weights {broken[0]} are not finite")
    return denoiser.eval()


def known_settings(model_type: str) -> list[str]:
    """Names of a published network's settings."""
    return [*(key for key in asdict(FREE[model_type]) if key != "architecture"), *FIXED[model_type], "label_dropout"]


def share_of(value: Any) -> float | None:
    """A number from 0 to 1; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= 1 else None


def _architecture(network: Mapping[str, Any]) -> str:
    """Our name of a published network."""
    model_type, differences = network["model_type"], []
    for architecture, (published_type, marks) in ARCHITECTURES.items():
        if published_type == model_type:
            others = [
                f"{key}={network[key]!r} is not {value!r}" for key, value in marks.items() if network[key] != value
            ]
            if not others:
                return architecture
            differences.append(f"{architecture}: {', '.join(others)}")
    raise ValueError(f"this {model_type} is none of the architectures here ({'; '.join(differences)})")


def read_edm_pickle(path: str | Path) -> PublishedNetwork:
    """Takes the EMA network out of a published snapshot (`.pkl`) without running anything that it contains.

    Raises ValueError where the file is no such snapshot, or names anything but tensors and inert containers.
    """
    try:
        with Path(path).open("rb") as file:  # read as far as it is a pickle
            published = _take_apart(_TensorsOnlyUnpickler(file).load())
        if sum(tensor.numel() for tensor in published.tensors.values()) > Path(path).stat().st_size:
            raise ValueError("its tensors have more values than the file has bytes")
        return published
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except PermissionError:
        raise
    except Exception as error:  # whatever a damaged or made-up pickle ends in
        raise ValueError(f"{path}: not a readable EDM snapshot ({type(error).__name__}: {error})") from error


def _take_apart(snapshot: Any) -> PublishedNetwork:
    """The EMA network of an unpickled snapshot."""
    denoiser = snapshot.get("ema") if isinstance(snapshot, dict) else None
    found = getattr(denoiser, "class_name", type(denoiser).__name__)
    if not isinstance(denoiser, _Inert) or found != "EDMPrecond":
        raise ValueError(f"expected an EDM snapshot, a dictionary whose 'ema' is an EDMPrecond; found {found}")
    model = denoiser.state["_modules"]["model"]
    arguments = {**denoiser.state.get("_init_kwargs", {}), **model.state.get("_init_kwargs", {})}
    known = known_settings(model.class_name) if model.class_name in FREE else ()
    attributes = {"augment_dim": 0, "sigma_data": 0.5, **arguments, **denoiser.state}
    sizes = {key: int(attributes[key]) for key in INTERFACE}
    data = snapshot.get("dataset_kwargs")
    return PublishedNetwork(
        tensors=_tensors(denoiser),
        **sizes,
        network={"model_type": model.class_name, **{k: _plain(v) for k, v in arguments.items() if k in known}},
        sigma_data=float(attributes["sigma_data"]),
        p_uncond=share_of(_plain(data.get("p_uncond"))) if isinstance(data, dict) else None,
    )


class _Function:
    """A function for a pickle to call, which may try to set attributes of all that it is handed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("refused: the file sets attributes of a function, which no EDM snapshot does")


class _Inert:
    """Stands for an object of a class that is not loaded: its name and its attributes."""

    class_name = "ModuleDict"  # unless told otherwise: the one class that is pickled as an object of its own
    state: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state


def _inert_object(meta: Mapping[str, Any]) -> _Inert:
    """In place of `_reconstruct_persistent_obj`, which would execute `meta["module_src"]`."""
    inert = _Inert()
    inert.class_name, inert.state = meta["class_name"], meta["state"]
    return inert


def _load_storage(data: bytes) -> Any:
    """In place of `torch.storage._load_from_bytes`, which would unpickle freely."""
    refuse_inflating(io.BytesIO(data), len(data))
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _numpy_scalar(dtype: np.dtype, data: bytes) -> Any:
    if dtype.hasobject:
        raise ValueError("refused: a NumPy scalar that holds a Python object")
    return np.frombuffer(data, dtype=dtype, count=1)[0]


class _TensorsOnlyUnpickler(pickle._Unpickler):
    """Unpickles tensors, numbers and containers; any other name is refused before it is imported.

    The unpickler written in Python: that in C makes a table as long as the highest number that a file mentions.
    """

    HARMLESS: Mapping[tuple[str, str], Callable[..., Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "scalar"): _Function(_numpy_scalar),
        ("numpy._core.multiarray", "scalar"): _Function(_numpy_scalar),
        ("torch._utils", "_rebuild_parameter"): _Function(torch._utils._rebuild_parameter),
        ("torch._utils", "_rebuild_tensor_v2"): _Function(torch._utils._rebuild_tensor_v2),
        ("torch.storage", "_load_from_bytes"): _Function(_load_storage),
        ("torch.nn.modules.container", "ModuleDict"): _Inert,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Function(_inert_object),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.HARMLESS:
            raise ValueError(
                f"refused: the file asks for {module}.{name}, which no EDM snapshot needs to hand over its weights. "
                "Do not load it in any other way unless you trust whoever made it"
            )
        return self.HARMLESS[module, name]


def _tensors(module: _Inert, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and persistent buffers of a module and its children, named as in a state dict."""
    state = module.state
    transient = state.get("_non_persistent_buffers_set", ())
    buffers = {name: buffer for name, buffer in state.get("_buffers", {}).items() if name not in transient}
    own = {**state.get("_parameters", {}), **buffers}
    tensors = {prefix + name: tensor.detach() for name, tensor in own.items() if tensor is not None}
    for name, child in state.get("_modules", {}).items():
        if isinstance(child, _Inert):
            tensors.update(_tensors(child, f"{prefix}{name}."))
    return tensors


def _plain(value: Any) -> Any:
    """NumPy scalars, tuples and lists as what JSON knows."""
    if isinstance(value, list | tuple):
        if len(value) > 100 or any(isinstance(item, list | tuple | dict | np.ndarray) for item in value):
            raise ValueError("a setting that is no number and no short list of numbers")
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.generic) else value
