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
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_modules.diffusion.denoiser import Denoiser, build_denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.objective import EDMObjective
from storage.errors import UserError

# The published constructors' default values, which a network's dictionary may leave out.
PUBLISHED_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "channel_mult_emb": 4,
        "num_blocks": 4,
        "attn_resolutions": [16],
        "dropout": 0.10,
        "label_dropout": 0,
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": [1, 1],
    },
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "channel_mult_emb": 4,
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
        "dropout": 0.10,
        "label_dropout": 0,
    },
}

# What a damaged or made-up pickle can end in.
UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    LookupError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
)

# What is free in a network of these architectures; all else is as in PUBLISHED_DEFAULTS, or as here, or unknown here.
FREE = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout")
PUBLISHED_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ddpmpp": {"model_type": "SongUNet"},
    "ncsnpp": {
        "model_type": "SongUNet",
        "embedding_type": "fourier",
        "channel_mult_noise": 2,
        "encoder_type": "residual",
        "resample_filter": [1, 3, 3, 1],
    },
    "adm": {"model_type": "DhariwalUNet"},
}


class PublishedNetwork(NamedTuple):
    """A published network, taken apart.

    Attributes:
        tensors: Weights and buffers under their published names (`model.enc.32x32_conv.weight`, ...), any float dtype.
        img_resolution, img_channels, label_dim, augment_dim: As of `Denoiser`.
        network: The published settings: `model_type`, `model_channels`, `channel_mult`, `embedding_type`, ...
        sigma_data: Standard deviation of the data.
    """

    tensors: dict[str, Tensor]
    img_resolution: int
    img_channels: int
    label_dim: int
    augment_dim: int
    network: dict[str, Any]
    sigma_data: float = 0.5


def denoiser_from_edm(published: PublishedNetwork) -> Denoiser:
    """The denoiser with published weights, in evaluation mode.

    Raises:
        ValueError: The network is none that this project has, or the weights do not fit it.
    """
    tensors, *interface, network, sigma_data = published
    model_type = network.get("model_type")
    if model_type not in PUBLISHED_DEFAULTS:
        raise ValueError(f"model_type is {model_type!r}; this project has {[*PUBLISHED_DEFAULTS]}")
    defaults = PUBLISHED_DEFAULTS[model_type]
    if unknown := [key for key in network if key not in defaults and key != "model_type"]:
        raise ValueError(f"unknown settings {unknown} of a {model_type}; expected some of {[*defaults]}")
    full = {**defaults, **network}
    architecture = _architecture(full)
    sizes = {key: getattr(published, key) for key in ("img_resolution", "img_channels", "sigma_data")}
    if wrong := [f"{key}={value}" for key, value in sizes.items() if not 0 < value < math.inf]:
        raise ValueError(f"{', '.join(wrong)}: expected a number above 0")
    try:
        settings = NetworkSettings(architecture, **{key: full[key] for key in FREE})
        denoiser = build_denoiser(settings, *interface)
        denoiser.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (UserError, RuntimeError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"the weights do not fit the settings of this {model_type}: {error}") from error
    if broken := [name for name, tensor in denoiser.state_dict().items() if not tensor.isfinite().all()]:
        raise ValueError(f"the weights {broken[0]} are not finite")
    denoiser.objective = EDMObjective(sigma_data=sigma_data)
    return denoiser.eval()


def _architecture(network: Mapping[str, Any]) -> str:
    """Our name of a published network."""
    differences = []
    for architecture, own in PUBLISHED_ARCHITECTURES.items():
        if own["model_type"] == network["model_type"]:
            marks = {**PUBLISHED_DEFAULTS[own["model_type"]], **own}
            fixed = [key for key in marks if key not in (*FREE, "label_dropout")]
            others = [f"{key}={network[key]!r} is not {marks[key]!r}" for key in fixed if network[key] != marks[key]]
            if not others:
                return architecture
            differences.append(f"{architecture}: {', '.join(others)}")
    raise ValueError(f"this {network['model_type']} is none of the architectures here ({'; '.join(differences)})")


def read_edm_pickle(path: str | Path) -> PublishedNetwork:
    """Takes the EMA network out of a published snapshot (`.pkl`) without running anything that it contains.

    Raises ValueError where the file is no such snapshot, or names anything but tensors and inert containers.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            snapshot = _TensorsOnlyUnpickler(file).load()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except UNREADABLE as error:
            raise ValueError(f"{path}: not a readable EDM snapshot ({type(error).__name__}: {error})") from error
    try:
        return _take_apart(snapshot, path)
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a readable EDM snapshot ({type(error).__name__}: {error})") from error


def _take_apart(snapshot: Any, path: Path) -> PublishedNetwork:
    """The EMA network of an unpickled snapshot."""
    denoiser = snapshot.get("ema") if isinstance(snapshot, dict) else None
    if not isinstance(denoiser, _Inert) or denoiser.class_name != "EDMPrecond":
        found = getattr(denoiser, "class_name", type(denoiser).__name__)
        raise ValueError(f"{path}: expected an EDM snapshot, a dictionary whose 'ema' is an EDMPrecond; found {found}")
    model = denoiser.state.get("_modules", {}).get("model")
    if not isinstance(model, _Inert):
        raise ValueError(f"{path}: its EDMPrecond holds no network 'model'")

    arguments = {**denoiser.state.get("_init_kwargs", {}), **model.state.get("_init_kwargs", {})}
    known = PUBLISHED_DEFAULTS.get(model.class_name, {})
    settings = {key: _plain(value) for key, value in arguments.items() if key in known}
    attributes = {**arguments, **denoiser.state}
    if missing := [key for key in ("img_resolution", "img_channels", "label_dim") if key not in attributes]:
        raise ValueError(f"{path}: its EDMPrecond does not say {missing}")
    return PublishedNetwork(
        tensors=_tensors(denoiser),
        img_resolution=int(attributes["img_resolution"]),
        img_channels=int(attributes["img_channels"]),
        label_dim=int(attributes["label_dim"]),
        augment_dim=int(attributes.get("augment_dim", 0)),
        network={"model_type": model.class_name, **settings},
        sigma_data=float(attributes.get("sigma_data", 0.5)),
    )


class _Function:
    """A function for a pickle to call. Nothing about it can be set, as a pickle may try with all that it is handed."""

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
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _numpy_scalar(dtype: np.dtype, data: bytes) -> Any:
    if dtype.hasobject:
        raise ValueError("refused: a NumPy scalar that holds a Python object")
    return np.frombuffer(data, dtype=dtype, count=1)[0]


class _TensorsOnlyUnpickler(pickle.Unpickler):
    """Unpickles tensors, numbers and containers; any other name is refused before it is imported."""

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
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
