# The server without the embedded engines: give it DSNs (see "Configuration" in README.md).
FROM python:3.11-slim AS build
WORKDIR /src
COPY locks/bootstrap.lock locks/server.lock locks/
RUN python -m venv /opt/mrm && /opt/mrm/bin/pip install --no-cache-dir --require-hashes -r locks/bootstrap.lock \
 && /opt/mrm/bin/uv pip install --python /opt/mrm/bin/python --require-hashes --no-cache -r locks/server.lock
COPY pyproject.toml README.md ./
COPY generated generated
COPY mrm_client mrm_client
COPY server server
COPY storage storage
RUN /opt/mrm/bin/uv pip install --python /opt/mrm/bin/python --no-cache --no-deps . \
 && /opt/mrm/bin/uv pip uninstall --python /opt/mrm/bin/python uv

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home mrm
COPY --from=build /opt/mrm /opt/mrm
ENV PATH=/opt/mrm/bin:$PATH PYTHONUNBUFFERED=1 GRPC_ENABLE_FORK_SUPPORT=0 \
    MRM_GRPC__HOST=0.0.0.0 MRM_GRPC__PORT=50051
# Other machines reach it, so it starts only with MRM_GRPC__TLS_CERTIFICATE and _KEY, or MRM_GRPC__ALLOW_PLAINTEXT=true.
USER mrm
EXPOSE 50051
# With TLS it trusts the certificate that the environment names. It asks for the process, which serves until it drains: one
# that waits for a store must not be taken for broken.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["mrm", "health", "mrm", "--target", "127.0.0.1:50051"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["mrm"]
CMD ["serve"]
