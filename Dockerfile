# One image recipe for every service: docker build --build-arg EXTRA=registry .
FROM python:3.11-slim-bookworm

ARG EXTRA
RUN test -n "$EXTRA"

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    GRPC_ENABLE_FORK_SUPPORT=0 GRPC_VERBOSITY=NONE ORT_DISABLE_TELEMETRY=1 MALLOC_ARENA_MAX=2

RUN useradd --create-home --uid 10001 tidemill && install -d -o tidemill /data
WORKDIR /app

COPY pyproject.toml README.md LICENSE ./
COPY scripts/constraints.txt scripts/
COPY libs libs
COPY services services
RUN pip install -c scripts/constraints.txt ".[$EXTRA]"

USER tidemill
VOLUME /data
ENV SERVICE=$EXTRA
# exec: the service is process 1 and gets the SIGTERM.
CMD ["sh", "-c", "exec python -m tidemill.$SERVICE"]
