"""Train DRAEM or the convolutional autoencoder on nominal images and set its thresholds.

python jobs/train.py --model draem --data.nominal.uri s3://archive/nominal --output_uri s3://archive/models \\
    --run_name line1
"""

from typing import Any

from steelray.job import run_job, say
from steelray.reconstruction.config import TrainConfig


def run(config: TrainConfig) -> dict[str, Any]:
    from steelray.cluster.trainer import train_model

    return train_model(config, say)


if __name__ == "__main__":
    run_job(TrainConfig, run, __doc__ or "")
