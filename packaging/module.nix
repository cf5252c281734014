# services.duet: one node of a Duet cluster.
#
#   services.duet = {
#     enable = true;
#     openFirewall = true;
#     settings = {
#       node_id = 1;
#       cluster = "prod";
#       founders = [ { id = 1; address = "a.example:7400"; } … ];
#       timing.stop_ms = 20000;
#     };
#   };
#
# The unit is the package's own (packaging/duetd.service), so its hardening is not said a second time here. Certificates are
# not of the store: they are put into /etc/duet, root:duet 0640, and are read again when they change.
{ self }:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.duet;
  format = pkgs.formats.toml { };
  port = lib.toInt (lib.last (lib.splitString ":" cfg.settings.listen));
  nodeId = description: lib.mkOption {
    type = lib.types.ints.between 1 4294967295;
    inherit description;
  };
  file = name: lib.mkOption {
    type = lib.types.str;
    default = name;
    description = "A PEM file; a relative path is relative to /etc/duet.";
  };
in
{
  options.services.duet = {
    enable = lib.mkEnableOption "duetd, one node of a Duet cluster";

    package = lib.mkOption {
      type = lib.types.package;
      default = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
      defaultText = lib.literalExpression "duet.packages.\${system}.default";
      description = "The package with duetd and duet.";
    };

    openFirewall = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Whether to open the UDP port of `settings.listen`.";
    };

    settings = lib.mkOption {
      description = "What becomes /etc/duet/duetd.toml: any key that duetd.toml(5) has.";
      type = lib.types.submodule {
        freeformType = format.type;
        options = {
          node_id = nodeId "This node's id, as the catalog gave it out.";
          cluster = lib.mkOption {
            type = lib.types.str;
            example = "prod";
            description = "The cluster's name, as in every certificate of it.";
          };
          listen = lib.mkOption {
            type = lib.types.str;
            default = "[::]:7400";
            description = "UDP address for peers and clients.";
          };
          data_dir = lib.mkOption {
            type = lib.types.str;
            default = "/var/lib/duet";
            description = "Where this node keeps its data. Another folder than the default has to exist and belong to duet.";
          };
          tls = {
            ca = file "ca.pem";
            cert = file "node.pem";
            key = file "node.key";
          };
          founders = lib.mkOption {
            type = lib.types.nonEmptyListOf (
              lib.types.submodule {
                options = {
                  id = nodeId "The founder's id.";
                  address = lib.mkOption {
                    type = lib.types.str;
                    example = "a.example:7400";
                    description = "HOST:PORT at which it is reached.";
                  };
                };
              }
            );
            description = "The nodes that start the cluster: the same list on every node.";
          };
        };
      };
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    environment.etc."duet/duetd.toml".source = format.generate "duetd.toml" cfg.settings;

    users.users.duet = {
      isSystemUser = true;
      group = "duet";
      home = "/var/lib/duet";
      description = "Duet key-value store";
    };
    users.groups.duet = { };

    systemd.packages = [ cfg.package ];
    systemd.tmpfiles.packages = [ cfg.package ];
    systemd.services.duetd = {
      wantedBy = [ "multi-user.target" ];
      restartTriggers = [ config.environment.etc."duet/duetd.toml".source ];
      serviceConfig = lib.mkIf (cfg.settings.data_dir != "/var/lib/duet") { ReadWritePaths = [ cfg.settings.data_dir ]; };
    };

    # As packaging/duet.sysctl: QUIC's bursts overflow UDP's default buffers.
    boot.kernel.sysctl = {
      "net.core.rmem_max" = lib.mkDefault 8388608;
      "net.core.wmem_max" = lib.mkDefault 8388608;
    };

    networking.firewall.allowedUDPPorts = lib.mkIf cfg.openFirewall [ port ];
  };
}
