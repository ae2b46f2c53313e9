# The program as an image: built from source, run by a user without rights, on a root that may be read-only.
#
#   docker build -t btcr2-aggregation .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges -v btcr2:/var/lib/btcr2 \
#       -p 8080:8080 -e BTCR2_CHAIN=... btcr2-aggregation serve --identity /var/lib/btcr2/service.id
FROM rust:1.90-slim-bookworm AS build
# Bitcoin Core's consensus code is C++.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --locked --release --package btcr2-aggregation \
    && target/release/btcr2-aggregation docs man target/man \
    && target/release/btcr2-aggregation docs completions target/completions

FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 btcr2 \
    && useradd --system --uid 10001 --gid btcr2 --home-dir /var/lib/btcr2 --shell /usr/sbin/nologin btcr2 \
    && install -d -m 0700 -o btcr2 -g btcr2 /var/lib/btcr2
COPY --from=build /src/target/release/btcr2-aggregation /usr/local/bin/
COPY --from=build /src/target/man /usr/local/share/man/man1
COPY --from=build /src/LICENSE-MIT /src/LICENSE-APACHE /usr/local/share/doc/btcr2-aggregation/
# Keys, journals and results: back this volume up (docs/operating.md, "Backups").
VOLUME /var/lib/btcr2
WORKDIR /var/lib/btcr2
USER 10001:10001
ENV BTCR2_LISTEN=0.0.0.0:8080 \
    BTCR2_METRICS_LISTEN=127.0.0.1:9100 \
    BTCR2_STATE=/var/lib/btcr2/state \
    BTCR2_OUT=/var/lib/btcr2/results
EXPOSE 8080
# Of `serve`: other commands need --no-healthcheck. A node that does not answer makes the service not ready.
HEALTHCHECK --interval=30s --timeout=5s --start-period=2m --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9100 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r line <&3 && [[ $line == *' 200 '* ]]"]
ENTRYPOINT ["btcr2-aggregation"]
CMD ["serve", "--identity", "/var/lib/btcr2/service.id"]
