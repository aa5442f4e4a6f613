# An image with the server and the shared libraries it uses, nothing else: no shell, no package manager, not root.
#
#   docker build -t embergate .      # on the board itself, or on a PC for the PC
#
# deploy/arm64.Dockerfile makes the board's image on a PC: with `--platform linux/arm64` this file would do so, too, but
# emulate the compiler.
#
#   docker run -p 50051:50051 -p 9464:9464 --read-only --cap-drop ALL --security-opt no-new-privileges \
#     --security-opt seccomp=deploy/seccomp/embergate.json --memory 3g --memory-swap 3g --stop-timeout 45 \
#     -v "$PWD/models:/models:ro" -e EMBERGATE_MODEL=/models/gemma-4-e2b-it.gguf \
#     -v "$PWD/api-keys:/api-keys:ro" -e EMBERGATE_API_KEYS=/api-keys embergate
#
# `docker run --rm embergate keygen NAME` makes a key and its line for the file api-keys. Without keys (or client
# certificates) the server refuses to listen on the container's network, unless EMBERGATE_ALLOW_UNAUTHENTICATED=true says
# that whoever reaches the port may use it.
#
# Without the seccomp profile Docker refuses io_uring, and rows are read with pread. The DRAM budget follows --memory.
ARG DEBIAN=bookworm-slim
FROM debian:${DEBIAN} AS build
WORKDIR /src
COPY deploy/install_packages.sh deploy/
RUN deploy/install_packages.sh build
COPY CMakeLists.txt ./
COPY deploy/CMakeLists.txt deploy/
COPY proto proto/
COPY storage storage/
COPY engine engine/
COPY server server/
# oneDNN serves F32 weights only, and only when asked to; it would more than double the image.
RUN cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DEMBERGATE_BUILD_TESTS=OFF -DEMBERGATE_WITH_ONEDNN=OFF \
  && cmake --build build --target embergate
COPY LICENSE ./
COPY deploy/image_root.sh deploy/
RUN deploy/image_root.sh build/embergate /image

FROM scratch
LABEL org.opencontainers.image.title="Embergate" \
      org.opencontainers.image.description="gRPC inference server for Gemma 3n and Gemma 4 that keeps the per-layer embeddings on flash" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      dev.embergate.sbom="/usr/share/embergate/sbom.spdx.json"
COPY --from=build /image/ /
# Everything that `serve` can be told may come from the environment: --row-cache is EMBERGATE_ROW_CACHE.
ENV EMBERGATE_LISTEN=0.0.0.0:50051 \
    EMBERGATE_METRICS=0.0.0.0:9464 \
    EMBERGATE_MODEL=/models/model.gguf \
    XDG_STATE_HOME=/state
USER 65532:65532
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 CMD ["/usr/bin/embergate", "health"]
ENTRYPOINT ["/usr/bin/embergate"]
CMD ["serve"]
