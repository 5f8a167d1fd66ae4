# rlserve in an image, for one machine, Kubernetes, SkyPilot and Slurm's containers:
#
#   docker build --target cpu --tag rlserve:cpu .
#   docker build --target cuda --tag rlserve:cuda .
#
# The wheel is built in a stage of its own, so that the images have no source and nothing that builds it.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# What every image has: a compiler for the kernels, which rlserve and Triton compile for the machine that they run on.
FROM python:${PYTHON}-slim-bookworm AS base
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 rlserve \
    && mkdir /runs /models \
    && chown rlserve /runs /models
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /home/rlserve
EXPOSE 8000
# Of a server; a run has no such port, and whoever starts one turns this off or looks at it in another way.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["rlserve"]
CMD ["--help"]

FROM base AS cpu
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --constraint /constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu \
    && pip install --constraint /constraints.txt --find-links /wheels 'rlserve[serve,structured]'
USER 1000

# The wheels of torch for Linux bring CUDA with them; the machine has the driver, the container runtime lends it.
FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --constraint /constraints.txt --find-links /wheels 'rlserve[gpu,serve,structured]'
USER 1000
