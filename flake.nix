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
      duet =
        pkgs:
        pkgs.rustPlatform.buildRustPackage (
          inputs pkgs
          // {
            pname = "duet";
            version = "0.1.0";
            src = self;
            cargoLock.lockFile = ./Cargo.lock;
            # There is no repository in the sandbox.
            DUET_COMMIT = builtins.substring 0 12 (self.rev or "");
            cargoBuildFlags = [ "-p" "duet-node" "-p" "duet-cli" "-p" "duet-package" ];
            # What needs no other process, network namespace or root; `make test` runs the rest.
            cargoTestFlags = map (crate: "--package=duet-${crate}") [ "proto" "store" "engine-strong" "engine-eventual" "router" ];
            postInstall = ''
              $out/bin/duet-pages pages
              rm $out/bin/duet-pages
              installManPage pages/man1/* pages/man5/* pages/man8/*
              installShellCompletion --bash --name duet pages/bash/duet --name duetd pages/bash/duetd
              installShellCompletion --zsh pages/zsh/_duet pages/zsh/_duetd
              installShellCompletion --fish pages/fish/duet.fish pages/fish/duetd.fish

              install -Dm644 packaging/duetd.toml -t $out/share/duet
              install -Dm644 packaging/prometheus/duet.rules.yml -t $out/share/duet/prometheus
              install -Dm644 packaging/grafana/duet.json -t $out/share/duet/grafana
              install -Dm644 packaging/duet.tmpfiles $out/lib/tmpfiles.d/duet.conf
              install -Dm644 packaging/duetd.service -t $out/lib/systemd/system
              substituteInPlace $out/lib/systemd/system/duetd.service \
                --replace-fail /usr/bin/duetd $out/bin/duetd \
                --replace-fail /usr/share/duet $out/share/duet \
                --replace-fail /bin/sh ${pkgs.runtimeShell} \
                --replace-fail 'cmp -s' '${pkgs.diffutils}/bin/cmp -s'
            '';
            meta = {
              description = "Distributed key-value store with a consistency mode per namespace";
              license = [ pkgs.lib.licenses.mit pkgs.lib.licenses.asl20 ];
              mainProgram = "duet";
              platforms = systems;
            };
          }
        );
      # A step of `make check`, with the package's sources and dependencies.
      step =
        pkgs: name: tools: command:
        (duet pkgs).overrideAttrs (before: {
          pname = "duet-${name}";
          nativeBuildInputs = before.nativeBuildInputs ++ tools;
          buildPhase = command;
          doCheck = false;
          installPhase = "touch $out";
          dontFixup = true;
        });
    in
    {
      packages = each (pkgs: {
        default = duet pkgs;
      });

      nixosModules.default = import ./packaging/module.nix { inherit self; };

      devShells = each (pkgs: {
        default = pkgs.mkShell (
          inputs pkgs
          // {
            packages = [
              pkgs.cargo
              pkgs.rustc
              pkgs.clippy
              pkgs.rustfmt
              pkgs.cargo-nextest
              pkgs.cargo-deny
              pkgs.gnumake
              pkgs.prometheus.cli
            ];
          }
        );
      });

      checks = each (pkgs: {
        package = duet pkgs;
        format = step pkgs "format" [ pkgs.rustfmt ] "cargo fmt --all --check";
        lints = step pkgs "lints" [ pkgs.clippy ] "cargo clippy --workspace --all-targets --all-features --offline -- -D warnings";
        documentation = step pkgs "documentation" [ ] ''
          RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --offline
        '';
        alerts = pkgs.runCommand "duet-alerts" { nativeBuildInputs = [ pkgs.prometheus.cli ]; } ''
          cd ${./packaging/prometheus}
          promtool check rules duet.rules.yml
          promtool test rules duet.rules.test.yml
          touch $out
        '';
        # 20: an exposure of 2.0.
        unit = pkgs.runCommand "duet-unit" { nativeBuildInputs = [ pkgs.systemd ]; } ''
          systemd-analyze security --offline=true --threshold=20 --no-pager ${duet pkgs}/lib/systemd/system/duetd.service
          touch $out
        '';
        module = pkgs.testers.runNixOSTest {
          name = "duet";
          nodes.machine = {
            imports = [ self.nixosModules.default ];
            services.duet = {
              enable = true;
              settings = {
                node_id = 1;
                cluster = "prod";
                founders = [
                  {
                    id = 1;
                    address = "127.0.0.1:7400";
                  }
                ];
              };
            };
          };
          testScript = ''
            machine.wait_for_unit("multi-user.target")
            machine.succeed(
                "duet pki init --cluster prod",
                "duet pki issue --node 1 --hosts 127.0.0.1 --out node",
                "duet pki issue --client admin --role admin --out admin",
                "install -g duet -m 640 pki/ca.pem node.pem node.key /etc/duet/",
                "systemctl reset-failed duetd || true",
                "systemctl start duetd",
            )
            machine.wait_for_unit("duetd.service")
            duet = "duet --endpoints 127.0.0.1:7400 --cacert pki/ca.pem --cert admin.pem --key admin.key "
            machine.wait_until_succeeds(duet + "ns create orders")
            machine.succeed(duet + "put orders 1 'two apples'", "systemctl restart duetd")
            machine.wait_until_succeeds(duet + "get orders 1 | grep 'two apples'")
          '';
        };
      });

      formatter = each (pkgs: pkgs.nixfmt-rfc-style);
    };
}
