# Everything a user types first. The work is in scripts/, one readable file per command.

.PHONY: help demo demo-stop test sdk-matrix schemathesis load torture interruptions fuzz bench build

help:
	@echo 'make demo          set everything up, run the two demo programs, print what they saw, take it all away'
	@echo 'make demo KEEP=1   the same, and leave the server running for you'
	@echo 'make demo-stop     stop a server that KEEP=1 left running'
	@echo 'make test          run every test there is, then check that nothing was left behind'
	@echo 'make sdk-matrix    run every release of the E2B SDKs, old and new, and write docs/sdk-matrix.md'
	@echo 'make bench         measure create, pause, resume and memory, beside gVisor, CRIU and plain QEMU: RUNS=20 PEER_RUNS=5'
	@echo 'make schemathesis  ask everything the OpenAPI document allows, and much it does not, 10,000 times'
	@echo 'make load          many clients at once for MINUTES=10, then a look at what the server still holds'
	@echo 'make torture       kill servers and machines, fill the vault, cut the power, and see whether anything is lost'
	@echo 'make interruptions  end a server at every step of every operation, and write docs/interruption.md'
	@echo 'make fuzz          look for input that what reads requests cannot take: SECONDS=60 for each reader'
	@echo 'make build         the release binary only: target/release/torpor'

demo:
	@KEEP='$(KEEP)' scripts/demo

demo-stop:
	@scripts/demo stop

test:
	@scripts/test

sdk-matrix:
	@VERSIONS='$(VERSIONS)' scripts/sdk-matrix

bench:
	@RUNS='$(RUNS)' PEER_RUNS='$(PEER_RUNS)' SIZES='$(SIZES)' PEERS='$(PEERS)' MACHINE='$(MACHINE)' scripts/bench

schemathesis:
	@scripts/schemathesis

load:
	@CLIENTS='$(CLIENTS)' MINUTES='$(MINUTES)' MAX_RUNNING='$(MAX_RUNNING)' scripts/load

torture:
	@CYCLES='$(CYCLES)' SEED='$(SEED)' POWER_CUTS='$(POWER_CUTS)' SANDBOXES='$(SANDBOXES)' VERBOSE='$(VERBOSE)' \
		REPORT='$(REPORT)' scripts/torture

interruptions:
	@scripts/interruptions

fuzz:
	@FUZZ_SECONDS='$(SECONDS)' FUZZ_TARGETS='$(TARGETS)' FUZZ_KEEP='$(KEEP)' scripts/fuzz

build:
	cargo build --release --package torpor --locked
