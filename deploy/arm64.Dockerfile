# The image of ../Dockerfile for 64-bit Arm boards, made on an x86-64 PC in the time that one for the PC takes: it is
# cross-compiled, and nothing of it runs here. On the board itself ../Dockerfile makes the same.
#
#   DOCKER_BUILDKIT=1 docker build --platform linux/arm64 -f deploy/arm64.Dockerfile -t embergate .
#   docker save embergate | ssh BOARD docker load
ARG DEBIAN=bookworm-slim
FROM --platform=linux/amd64 debian:${DEBIAN} AS build
ARG TARGETARCH
RUN [ "$TARGETARCH" = arm64 ] || { echo "--platform linux/arm64 is missing, or BuildKit (DOCKER_BUILDKIT=1)" >&2; exit 1; }
WORKDIR /src
COPY deploy/install_packages.sh deploy/
RUN deploy/install_packages.sh cross
COPY CMakeLists.txt CMakePresets.json ./
COPY deploy/CMakeLists.txt deploy/
COPY proto proto/
COPY storage storage/
COPY engine engine/
COPY server server/
# The preset's sysroot stays empty: Debian's arm64 libraries are beside the PC's own.
ENV PKG_CONFIG_LIBDIR=/usr/lib/aarch64-linux-gnu/pkgconfig
RUN cmake --preset arm64 -DEMBERGATE_BUILD_TESTS=OFF -DEMBERGATE_WITH_ONEDNN=OFF \
  && cmake --build --preset arm64 --target embergate
COPY LICENSE ./
COPY deploy/image_root.sh deploy/
RUN deploy/image_root.sh build-arm64/embergate /image

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
