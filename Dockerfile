# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# The dependencies alone, behind empty targets: this layer lasts until Cargo.lock changes.
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests/it \
 && touch src/lib.rs tests/it/main.rs \
 && echo 'fn main() {}' > src/main.rs \
 && cargo build --release --locked

# The crate itself. The touch makes cargo see it as newer than the empty targets.
COPY migrations migrations
COPY policies policies
COPY src src
RUN touch src/lib.rs src/main.rs \
 && cargo build --release --locked \
 && mkdir -p /image/data \
 && cp target/release/patchwarden /image/patchwarden

# glibc, CA certificates, time zones and the user 65532; no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/patchwarden /usr/local/bin/patchwarden
COPY --from=build --chown=65532:65532 /image/data /var/lib/patchwarden
USER 65532:65532
WORKDIR /var/lib/patchwarden

ENV PATCHWARDEN_LISTEN=0.0.0.0:7080
# The admin listener speaks plain HTTP here and says so: probes and scrapers reach it from outside the
# container. Publish it only behind TLS, or set PATCHWARDEN_ADMIN_CERT_FILE and PATCHWARDEN_ADMIN_KEY_FILE.
# To keep it inside the container: PATCHWARDEN_ADMIN_LISTEN=127.0.0.1:7081.
ENV PATCHWARDEN_ADMIN_LISTEN=0.0.0.0:7081
ENV PATCHWARDEN_ADMIN_PLAINTEXT=true
# Keys, the instance's name and, unless PATCHWARDEN_STORE says otherwise, the audit log.
ENV PATCHWARDEN_DATA=/var/lib/patchwarden
# SQLite's own temporary files go to the volume too, so that the root file system can be read-only.
ENV SQLITE_TMPDIR=/var/lib/patchwarden

VOLUME /var/lib/patchwarden
EXPOSE 7080 7081
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s CMD ["patchwarden", "health"]
ENTRYPOINT ["patchwarden"]
CMD ["serve"]
