# Two commands do everything: `make demo` and `make test`.
.PHONY: demo test check bench conformance accuracy models fuzz clean

CACHE ?= .cache
LARVATUS = target/release/larvatus
export LARVATUS_CACHE = $(abspath $(CACHE))

# Builds, fetches one real model and photographs once, and classifies a photograph: the linear
# layers run in another process, which sees noise only and is checked on every layer.
demo: release
	@python3 scripts/fetch.py demo
	@photo=$$(ls $(CACHE)/images/imagenet/*.jpg | head -n 1); \
	echo; echo "$(LARVATUS) run $(CACHE)/models/efficientnet-lite0.onnx --image $$photo --labels $(CACHE)/models/imagenet-labels.txt"; \
	$(LARVATUS) run $(CACHE)/models/efficientnet-lite0.onnx --image $$photo \
		--labels $(CACHE)/models/imagenet-labels.txt --report $(CACHE)/demo-report.json && \
	echo "report: $(CACHE)/demo-report.json"

release:
	cargo build --release --workspace --locked

# Everything that must pass, without GPU. Needs the network once, for crates, models and data.
test: check
	python3 scripts/fetch.py demo conformance
	cargo build --workspace --all-targets --locked
	if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --workspace --locked; \
	else \
		cargo test --workspace --all-targets --locked; \
	fi
	cargo test --workspace --doc --locked
	target/debug/conformance $(CACHE)/onnx-node

# Form: formatting, lints, documentation, licences, directions of dependencies.
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	python3 scripts/direction.py
	if cargo deny --version >/dev/null 2>&1; then \
		cargo deny check licenses bans sources && \
		cargo deny --manifest-path fuzz/Cargo.toml check licenses bans sources; \
	fi

models:
	python3 scripts/fetch.py all

# Kernels against float kernels, the trusted side against ONNX Runtime.
bench: release
	python3 scripts/fetch.py demo speed
	cargo bench -p larvatus-kernels --bench linear --locked
	cargo bench -p larvatus-kernels --bench passes --locked
	cargo bench -p larvatus-kernels --bench verify --locked
	python3 scripts/trusted.py --larvatus $(LARVATUS)

conformance: release
	python3 scripts/fetch.py conformance
	target/release/conformance $(CACHE)/onnx-node --write docs/conformance.md

accuracy: release
	python3 scripts/fetch.py all
	python3 scripts/compare.py accuracy --larvatus $(LARVATUS)
	python3 scripts/compare.py accuracy --larvatus $(LARVATUS) --bits 12 --models resnet50,minilm

# Ten minutes a target; needs the nightly toolchain and cargo-fuzz.
fuzz:
	for target in attestation onnx_load frame_decode program_decode graph_decode policy_parse evidence_decode; do \
		cargo +nightly fuzz run $$target -- -max_total_time=600 || exit 1; \
	done

clean:
	cargo clean
