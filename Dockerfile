# The environment of requirements.lock, and the project in /leyden:
#
#   docker build -t leyden .                            # for CPUs
#   docker build -t leyden --build-arg DEVICE=cuda .    # for NVIDIA GPUs; run it with --gpus all
#   docker run --rm -v "$PWD/logs:/leyden/logs" -v "$PWD/data:/leyden/data" leyden --config configs/experiment/digits_cnn.yaml
#
# The folders that are mounted must be writable for user 1000, or add --user "$(id -u)".
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG DEVICE=cpu
ARG CPU_WHEELS=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1 \
    PATH=/venv/bin:$PATH HOME=/tmp
RUN python3 -m venv /venv && useradd --uid 1000 leyden
WORKDIR /leyden
COPY requirements.lock scripts/cpu_lock.awk /tmp/lock/
# PyTorch's CPU wheels are other files than the lock's, with hashes of their own; all else is installed by hash.
RUN cd /tmp/lock && if [ "$DEVICE" = cuda ]; then pip install --require-hashes -r requirements.lock; else \
      pip install --no-deps --index-url "$CPU_WHEELS" $(sed -nE 's/^(torch|torchvision)==([^ ]+).*/\1==\2/p' requirements.lock) && \
      awk -f cpu_lock.awk requirements.lock > rest.lock && pip install --no-deps --require-hashes -r rest.lock; \
    fi && rm -rf /tmp/lock
COPY pyproject.toml LICENSE README.md ./
COPY configs configs
COPY src src
RUN mkdir -p logs data .cache && chown leyden logs data .cache
USER leyden
VOLUME ["/leyden/logs", "/leyden/data"]
ENTRYPOINT ["python", "-m", "src.train"]
CMD ["--help"]
