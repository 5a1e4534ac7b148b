# One image for head, workers and submitter, with and without GPU (torch brings its CUDA libraries along).
#   docker build --tag steelray:0.1.0 .
# Base images are pinned to a patch release of Python and a Debian release; requirements.txt pins everything else.

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
# setuptools builds the project's own wheel below, and torch.compile imports it; pip freeze leaves it out
RUN python -m venv /opt/venv && /opt/venv/bin/pip install setuptools==84.2.1
# the pins first: this layer changes with requirements.txt only
COPY requirements.txt ./
RUN /opt/venv/bin/pip install --no-deps --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY steelray ./steelray
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation .

FROM python:3.11.14-slim-bookworm
# KubeRay's probes call wget; Debian keeps one version per release, so naming it would only break later builds.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends wget \
  && rm -rf /var/lib/apt/lists/* \
  && groupadd --gid 1000 steelray \
  && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp/home --shell /usr/sbin/nologin steelray
COPY --from=build /opt/venv /opt/venv
COPY jobs /opt/steelray/jobs
ENV PATH=/opt/venv/bin:$PATH \
  HOME=/tmp/home \
  PYTHONUNBUFFERED=1 \
  PYTHONDONTWRITEBYTECODE=1 \
  RAY_USAGE_STATS_ENABLED=0
WORKDIR /opt/steelray
USER 1000:1000
CMD ["python", "jobs/score_archive.py", "--help"]
