# A static program, its licence, and nothing else; not root.
#
#   docker build -t callback-guard .
#
# tests/image makes the same image without a daemon and without a registry: it gives a folder with the program as the
# build context `build`, which takes the place of the stage of that name.
FROM rust:1.95.0-bookworm AS build
WORKDIR /src
# .cargo belongs to it: it tells how aws-lc seeds its random numbers.
COPY . .
RUN RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target "$(uname -m)-unknown-linux-gnu" \
    && cp "target/$(uname -m)-unknown-linux-gnu/release/callback-guard" LICENSE /

FROM scratch
COPY --from=build /callback-guard /LICENSE /
USER 65532:65532
ENTRYPOINT ["/callback-guard"]
