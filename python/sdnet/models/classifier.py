"""A classifier of pictures in [0, 1], which saves and loads itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from csc_kernels import CSCConv2d

from ..errors import CheckpointError
from ..files import files_written_aside
from .registry import build

# The file of Classifier.calibration in a folder of save_pretrained.
CALIBRATION = "calibration.safetensors"

# What may be set in a sparse coding layer after it was made.
SETTINGS = ("lmbda", "mu", "n_iter")


class Classifier(nn.Module, PyTorchModelHubMixin, library_name="sdnet", tags=["sparse-coding"]):
    """A model of this package behind (x - mean) / std, so that noise, attacks and users speak of pixels in [0, 1].

    `save_pretrained(folder)` writes model.safetensors and config.json; `from_pretrained(folder or Hub name)` reads
    them, and `push_to_hub(name)` uploads them (huggingface_hub's PyTorchModelHubMixin).

    Args:
        name: of the model, see `sdnet.models.build`.
        num_classes: number of logits.
        mean, std: per channel, of pictures in [0, 1].
        options: further arguments of the model, such as width or lmbda.
        classes: their names in the order of the logits, where they are known.
        settings: lmbda, mu and n_iter of single sparse coding layers, by the layer's name in the network, which
            `save_pretrained` keeps where they have been set to others since, also to tensors and parameters; and
            step_size_of, the images that their step size in the file is for.

    Shapes:
        pictures (N, C, H, W) in [0, 1] -> logits (N, num_classes).

    >>> model = Classifier("sdnet18", options={"width": 4}).eval()
    >>> tuple(model(torch.rand(2, 3, 32, 32)).shape)
    (2, 10)
    """

    mean: Tensor
    std: Tensor
    # Lines from a picture's noise to its lmbda, where they were found, see sdnet.adapt.
    calibration: dict[str, Tensor] | None = None

    def __init__(
        self,
        name: str,
        num_classes: int = 10,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        options: dict[str, Any] | None = None,
        classes: Sequence[str] = (),
        settings: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean and std need one number per channel, std above 0; got {mean} and {std}")
        channels = (options or {}).get("in_channels", 3)
        if len(mean) != channels:
            raise ValueError(f"mean and std need one number per channel, of which there are {channels}; got {mean}")
        if classes and len(classes) != num_classes:
            raise ValueError(f"{len(classes)} names of classes for {num_classes} classes")
        if "num_classes" in (options or {}):
            raise ValueError(f"num_classes is no option of its own: there are {num_classes} classes")
        self.classes = tuple(classes)
        # What builds another of this kind, see sdnet.adapt.
        self.arguments: dict[str, Any] = {
            "name": name, "num_classes": num_classes, "mean": list(mean), "std": list(std),
            "options": dict(options or {}), "classes": list(classes),
        }  # fmt: skip
        self.network = build(name, num_classes=num_classes, **(options or {}))
        self._built = _settings(self.network)
        parameters: dict[str, nn.Parameter] = {}
        for layer, values in (settings or {}).items():
            if layer not in self._built or not set(values) <= {*SETTINGS, "step_size_of"}:
                raise ValueError(f"settings: {name} has no sparse coding layer {layer!r} with {', '.join(values)}")
            for setting, value in values.items():
                setattr(self.network.get_submodule(layer), setting, _from_json(value, parameters))
        self._settings = settings or {}
        for kind, values in (("mean", mean), ("std", std)):
            self.register_buffer(kind, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, strict: bool = True, **options: Any) -> Classifier:
        """PyTorchModelHubMixin's, which by itself leaves at random what the file does not have."""
        try:
            model = super()._from_pretrained(model_id=model_id, strict=strict, **options)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{model_id}: model.safetensors is not of the model in config.json: {reason[:300]}"
            ) from None
        # The weights came after the settings, with step sizes that do not say for which images they are.
        for layer, values in model._settings.items():
            model.network.get_submodule(layer).step_size_of = _from_json(values.get("step_size_of"), {})
        calibration = _calibration_file(model_id, options)
        if calibration is not None:
            model.calibration = load_file(calibration)
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        changed, settings = {}, _settings(self.network)
        if settings.keys() != self._built.keys():
            others = ", ".join(sorted(settings.keys() ^ self._built.keys()))
            raise ValueError(
                f"{self.arguments['name']} has other sparse coding layers than this network ({others}), so that it "
                "could not be loaded: save its state_dict()"
            )
        for layer, values in settings.items():
            differing = {
                name: value for name, value in values.items() if value != self._built.get(layer, {}).get(name)
            }
            size = self.network.get_submodule(layer).step_size_of
            if size is not None:
                differing["step_size_of"] = size
            if differing:
                changed[layer] = differing
        self._hub_mixin_config["settings"] = changed or None
        super()._save_pretrained(save_directory)
        (save_directory / CALIBRATION).unlink(missing_ok=True)
        if self.calibration is not None:
            save_file(self.calibration, save_directory / CALIBRATION)

    def save(self, folder: Path) -> None:
        """As save_pretrained, but the folder has all files of this model or, where writing fails, those before.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        with files_written_aside(folder) as aside:
            self.save_pretrained(aside)
        if self.calibration is None:
            (folder / CALIBRATION).unlink(missing_ok=True)  # Of the model before.

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network((pictures - self.mean) / self.std)


def _settings(network: nn.Module) -> dict[str, dict[str, Any]]:
    """What may be set in each sparse coding layer, as JSON has it: numbers, or of tensors their values and type.

    A parameter has the name of the first layer that holds it, because layers may share one.
    """
    names = {parameter: name for name, parameter in network.named_parameters()}

    def to_json(value: float | Tensor) -> Any:
        if not isinstance(value, Tensor):
            return value
        stored = {"values": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
        if isinstance(value, nn.Parameter):
            stored |= {"parameter": names[value], "requires_grad": value.requires_grad}
        return stored

    return {
        layer: {name: to_json(getattr(module, name)) for name in SETTINGS}
        for layer, module in network.named_modules()
        if isinstance(module, CSCConv2d)
    }


def _from_json(value: Any, parameters: dict[str, nn.Parameter]) -> Any:
    """A number, a size, a tensor or one of the parameters, which are made where they are met first."""
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    if not {"values", "dtype"} <= set(value):
        raise ValueError(f"settings: a tensor has values and a dtype, got {', '.join(value)}")
    tensor = torch.tensor(value["values"], dtype=getattr(torch, value["dtype"]))
    if "parameter" not in value:
        return tensor
    return parameters.setdefault(value["parameter"], nn.Parameter(tensor, value["requires_grad"]))


def _calibration_file(model: str, options: dict[str, Any]) -> Path | None:
    """The file of a calibration in a folder or, with options of from_pretrained, on the Hub; None without one."""
    if Path(model).is_dir():
        path = Path(model) / CALIBRATION
        return path if path.exists() else None
    known = ("revision", "cache_dir", "force_download", "token", "local_files_only")
    try:
        return Path(
            hf_hub_download(model, CALIBRATION, **{name: options[name] for name in known if name in options})
        )
    except EntryNotFoundError:
        return None
