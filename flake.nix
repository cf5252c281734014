{
  description = "Duet: a distributed key-value store where each namespace is strong or eventual, and can change";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      each = f: nixpkgs.lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      # RocksDB is compiled from the crate's own source: another release has other headers.
      inputs = pkgs: {
        nativeBuildInputs = [ pkgs.protobuf pkgs.rustPlatform.bindgenHook pkgs.installShellFiles ];
      };
    in
    {
      packages = each (pkgs: {
        default = pkgs.rustPlatform.buildRustPackage (
          inputs pkgs
          // {
            pname = "duet";
            version = "0.1.0";
            src = self;
            cargoLock.lockFile = ./Cargo.lock;
            cargoBuildFlags = [ "-p" "duet-node" "-p" "duet-cli" ];
            # The whole test suite wants network namespaces and root; `make test` runs it.
            cargoTestFlags = [ "-p" "duet-proto" "-p" "duet-store" ];
            postInstall = ''
              install -Dm644 packaging/duetd.service -t $out/lib/systemd/system
              installShellCompletion --cmd duet \
                --bash <($out/bin/duet completion bash) \
                --zsh <($out/bin/duet completion zsh) \
                --fish <($out/bin/duet completion fish)
            '';
            meta = {
              description = "Distributed key-value store with a consistency mode per namespace";
              license = [ pkgs.lib.licenses.mit pkgs.lib.licenses.asl20 ];
              mainProgram = "duet";
            };
          }
        );
      });

      devShells = each (pkgs: {
        default = pkgs.mkShell (
          inputs pkgs
          // {
            packages = [ pkgs.cargo pkgs.rustc pkgs.clippy pkgs.rustfmt pkgs.cargo-nextest pkgs.cargo-deny pkgs.gnumake ];
          }
        );
      });

      checks = each (pkgs: { package = self.packages.${pkgs.system}.default; });

      formatter = each (pkgs: pkgs.nixfmt-rfc-style);
    };
}
