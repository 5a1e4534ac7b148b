"""What held-out nominal strips show of distances to a stored bank, over a cluster: `scoring.normalization` needs it.

The class is plain; Ray Data makes actors of it. Every batch comes back as its sums, which the driver adds up.
"""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from steelray.cluster.connect import ComputePlan, plan_compute
from steelray.cluster.image_source import map_images
from steelray.cluster.patch_selection import NominalImages
from steelray.cluster.scoring_actors import plan_model_bank, running_bank
from steelray.cluster.search_actors import ActorSearch
from steelray.config import ComputeConfig
from steelray.models.model import Model, load_embed, open_model
from steelray.patchcore.bank import INFO_FILE, MemoryBank, bank_files, identified
from steelray.patchcore.index import BankSearch, LocalSearch, load_shard
from steelray.patchcore.meter import NominalMeter
from steelray.patchcore.profile import PROFILE_FILE, ProfileSums
from steelray.runs.batch import images_of
from steelray.schema import Status
from steelray.storage.location import Location

SUMS = pa.schema([pa.field("image_index", pa.int64(), nullable=False), pa.field("sums", pa.binary(), nullable=False)])
"""One row per batch: the least index of its images, and `ProfileSums` as bytes."""


class MeasuringActor:
    """Holds an embedder and a bank; Ray Data hands it batches.

    Args:
        portable: a reference to the `PortableEmbedder` or None, in a list: the actor's arguments stay small.
        servers: the actors that hold the bank; none loads it here.
    """

    def __init__(
        self, model: Model, compute: ComputeConfig, plan: ComputePlan, portable: list[ray.ObjectRef], servers: list[Any]
    ) -> None:
        info = model.bank
        assert info is not None
        threads, use_gpu = plan.scorer_threads, plan.scorer_gpus > 0
        embed, self._min_size_px = load_embed(
            info.embedder, info.weights_digest, compute, threads, ray.get(portable[0])
        )
        search: BankSearch
        if servers:
            search = ActorSearch(servers)
        else:
            search = LocalSearch([load_shard(Location(model.uri).read, info, num_threads=threads, use_gpu=use_gpu)])
        self._measure = NominalMeter(embed, search, info.embedder, info.scoring, info.num_vectors)
        self._input_size_px = info.input_size_px

    def __call__(self, decoded: pa.Table) -> pa.Table:
        statuses = decoded.column("status").to_pylist()
        images = [
            image
            for status, image in zip(statuses, images_of(decoded), strict=True)
            if status == Status.OK and image is not None
            if min(image.shape[:2]) >= self._min_size_px
            if self._input_size_px is None or image.shape[:2] == tuple(self._input_size_px)
        ]
        first = min(decoded.column("image_index").to_pylist())
        return pa.Table.from_pylist([{"image_index": first, "sums": self._measure(images).to_bytes()}], SUMS)


def measure_bank(
    bank: MemoryBank, location: Location, images: NominalImages, resources: dict[str, float]
) -> MemoryBank:
    """Measures held-out images with a stored bank that lacks its profile, and stores the profile beside it.

    Args:
        bank: as stored at `location`; with a normalisation that is not `none`.
        images: nominal, none of them in the bank.
        resources: of the cluster.

    Returns:
        The bank with its profile, under the id that this gives it.

    Raises:
        ConfigError: no image can be measured.
    """
    model, compute = open_model(location.uri), images.compute
    with running_bank(model, plan_model_bank(model, compute), compute.gpus_per_scorer) as servers:
        plan = plan_compute(resources.get("CPU", 0), resources.get("GPU", 0), compute, len(servers))
        arguments = (model, compute, plan, [ray.put(images.portable)], servers)
        batches = map_images(images.uri, images.manifest, images.decode, compute, plan, MeasuringActor, arguments)
        rows = pa.concat_tables(ray.get(batches.to_arrow_refs())).sort_by("image_index")  # added up in one order
    assert bank.info.scoring.normalization != "none"
    sums = ProfileSums.empty(bank.info.scoring.normalization, bank.info.num_vectors)
    for body in rows.column("sums").to_pylist():
        sums += ProfileSums.from_bytes(body)
    measured = identified(replace(bank, profile=sums.profile().to_bytes()))
    for name, body in bank_files(measured):
        if name in (PROFILE_FILE, INFO_FILE):  # the vectors are there already
            location.write(name, body)
    return measured
