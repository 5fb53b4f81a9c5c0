# One image for TPU, CUDA and CPU: docker build --build-arg ACCELERATOR=tpu|cuda12|cpu -t qa_jax .
FROM python:3.11-slim
ARG ACCELERATOR=cpu
WORKDIR /opt/qa_jax
COPY setup.py pyproject.toml README.md LICENSE ./
COPY qa_jax qa_jax
COPY tools tools
COPY configs configs
RUN extras="gcs,serve"; if [ "$ACCELERATOR" != cpu ]; then extras="$extras,$ACCELERATOR"; fi; python -m pip install --no-cache-dir ".[$extras]"
RUN qa-jax --help
ENTRYPOINT ["qa-jax"]
