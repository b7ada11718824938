# A node of RaftLock, and every command of `raftlock`.
#   docker build -t raftlock .
#   docker run -p 50051:50051 raftlock

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# The build folder is many times the binary, and would stay in this layer.
RUN cargo build --release --locked -p raftlock-server --bin raftlock \
    && mv target/release/raftlock /usr/local/bin/raftlock \
    && rm -r target

FROM debian:bookworm-slim
# The number is fixed: a volume keeps it, and whoever mounts a folder of the host has to give the folder to it.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/raftlock --shell /usr/sbin/nologin raftlock \
    && install -d -o raftlock -g raftlock -m 0700 /var/lib/raftlock
COPY --from=build /usr/local/bin/raftlock /usr/local/bin/raftlock
# A container's loopback is out of everybody's reach. Who reaches these ports is for the network to say.
ENV RAFTLOCK_LISTEN=0.0.0.0:50051 \
    RAFTLOCK_PEER_LISTEN=0.0.0.0:50052 \
    RAFTLOCK_DATA_DIR=/var/lib/raftlock
# By number, because that is how an orchestrator can tell that it is not root.
USER 10001:10001
# After the folder has its owner: a new volume begins as a copy of it.
VOLUME /var/lib/raftlock
EXPOSE 50051 50052
HEALTHCHECK --interval=5s --timeout=6s --start-period=30s \
    CMD ["raftlock", "health", "--endpoints", "127.0.0.1:50051"]
ENTRYPOINT ["raftlock"]
CMD ["serve"]
