def print_tables(lines):
    import json

    for l in lines:
        if l.get("truth"):
            continue
        print(
            l["experiment"],
            l["set"],
            l["recipe"],
            l["seed"],
            l.get("seen"),
            l.get("cpu_seconds"),
            json.dumps(l["cls"]["val"]),
            "mean:",
            json.dumps(l.get("cls + mean", {}).get("val")),
        )
