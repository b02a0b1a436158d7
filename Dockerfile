# DINO-X in a container. For a GPU:
#   docker build -t dino-x .
#   docker run --rm --gpus all --shm-size 8g -v /data:/data -v /runs:/runs dino-x \
#     pretrain --data /data/films --out /runs/mine
# For a CPU alone, a quarter of the size:
#   docker build -t dino-x --build-arg TORCH=https://download.pytorch.org/whl/cpu .
FROM python:3.11-slim

# Where torch comes from; the default is the wheels of PyPI, with CUDA.
ARG TORCH=https://pypi.org/simple

WORKDIR /opt/dino-x
COPY requirements-tested.txt ./
RUN pip install --no-cache-dir --index-url "$TORCH" --extra-index-url https://pypi.org/simple \
      "$(grep '^torch==' requirements-tested.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir -c requirements-tested.txt .

# Files are written as this user, not as root; --user "$(id -u)" makes them yours.
RUN useradd --create-home dino && mkdir /runs && chown dino /runs
USER dino
WORKDIR /runs
ENTRYPOINT ["dino-x"]
CMD ["--help"]
