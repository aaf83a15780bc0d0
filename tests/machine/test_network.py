from maskperf.machine.network import describe_infiniband, describe_network


def make_card(folder, name, *, speed, state="up", driver="mlx5_core"):
    card = folder / name
    (card / "device").mkdir(parents=True)
    (folder / "drivers" / driver).mkdir(parents=True, exist_ok=True)
    (card / "device" / "driver").symlink_to(folder / "drivers" / driver)
    (card / "operstate").write_text(f"{state}\n")
    (card / "speed").write_text(f"{speed}\n")


def test_cards_have_speed_state_and_driver_and_virtual_ones_are_left_out(tmp_path):
    make_card(tmp_path, "eth0", speed=100000)
    make_card(tmp_path, "eth1", speed=-1, state="down", driver="virtio_net")
    (tmp_path / "lo").mkdir()
    (tmp_path / "lo" / "speed").write_text("10000\n")
    first, second = describe_network(tmp_path)
    assert (first.name, first.gigabits_per_second, first.state, first.driver) == ("eth0", 100.0, "up", "mlx5_core")
    assert (second.name, second.gigabits_per_second, second.state) == ("eth1", None, "down")


def test_a_speed_that_cannot_be_read_is_unknown(tmp_path):
    make_card(tmp_path, "eth0", speed="")
    assert describe_network(tmp_path)[0].gigabits_per_second is None


def test_ports_of_infiniband(tmp_path):
    port = tmp_path / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    (port / "link_layer").write_text("InfiniBand\n")
    (found,) = describe_infiniband(tmp_path)
    assert (found.name, found.state, found.gigabits_per_second) == ("mlx5_0 port 1", "ACTIVE", 400.0)
    assert (found.rate, found.link_layer) == ("400 Gb/sec (4X NDR)", "InfiniBand")


def test_a_machine_without_infiniband_has_no_ports(tmp_path):
    assert describe_infiniband(tmp_path / "infiniband") == ()
