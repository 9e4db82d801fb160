"""The settings of the optimizer of EDM's training: `optimizer=`."""

from dataclasses import dataclass

from storage.settings import Settings, setting


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """Adam (arXiv 1412.6980) as EDM has it; the learning rate is `training.lr`."""

    group = "optimizer"

    name: str = setting("adam", "optimizer", choices=("adam",))
    betas: list[float] = setting(
        [0.9, 0.999], "share that the averages of gradient and squared gradient keep", low=0, below=1
    )
    eps: float = setting(1e-8, "added to the root of the averaged squared gradient", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2:
            self.refuse("betas", "two numbers from 0 and below 1 are expected, such as [0.9,0.999]")
