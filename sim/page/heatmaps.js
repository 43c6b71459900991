"use strict";
// Loads, traffic and links as heat maps of one plan or two, on one colour scale whose ends can be dragged.

(() => {
  const DIVERGING = ["#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b"];
  const RISING = ["#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725"];
  const numbers = (n) => Array.from({ length: n }, (_, index) => String(index));

  // Starts at zero only where the least value is below half of the largest.
  function scale(maps) {
    const all = maps.flatMap(({ cells }) => cells.map(([, , value]) => value));
    const [least, most] = all.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, 0]);
    return [least > 0.5 * most ? least : 0, most || 1];
  }

  function even(maps) {
    const off = maps.flatMap(({ cells }) => cells).reduce((most, [, , value]) => Math.max(most, Math.abs(value - 1)), 0) || 0.1;
    return [Math.max(0, 1 - off), 1 + off];
  }

  const cellsOf = (matrix) => matrix.flatMap((row, y) => row.map((value, x) => [x, y, value]));

  // Lines where a node ends, unless these are so many that they hide the cells.
  function nodeLines(n, perNode, axis) {
    const places = [];
    for (let at = perNode; at < n; at += perNode) places.push({ [axis]: at - 0.5 });
    return places.length < 16 && perNode > 1 ? places : [];
  }

  /* maps: of each plan {name, xs, ys, cells, lines}; about: {xName, yName, colors, range, format, tip, beside}. */
  function draw(figure, stage, maps, about) {
    const beside = about.beside && maps.length > 1 && figure.clientWidth > 640;
    const option = { ...charts.base(), title: [], grid: [], xAxis: [], yAxis: [], series: [] };
    const wide = figure.clientWidth - 44;
    const left = about.left;
    let top = 0;
    maps.forEach((map, index) => {
      const own = beside ? (wide - left) / 2 : wide - left;
      const from = beside ? index * (wide / 2) : 0;
      const side = about.square ? Math.min(own - 30, 400) : null;
      const height = side ?? Math.min(Math.max(map.ys.length * 18, 60), map.ys.length > 32 ? 420 : 300);
      option.title.push(charts.title(charts.short(map.name, own), from, top));
      option.grid.push({ left: from + left, top: top + 24, width: side ?? own - 14, height });
      const steps = { show: true, lineStyle: { color: charts.color("card"), width: 0.5 } };
      const axis = (data, name, more) => charts.axis({
        type: "category", data, gridIndex: index, name, nameLocation: "middle", splitArea: { show: false },
        splitLine: data.length <= 64 ? steps : { show: false }, ...more,
      });
      const every = Math.ceil((map.ys.length * 14) / height) - 1;
      option.xAxis.push(axis(map.xs, about.xName, { nameGap: 24 }));
      option.yAxis.push(axis(map.ys, about.yName, { inverse: true, nameGap: left - 18, axisLabel: { interval: every } }));
      option.series.push({
        type: "heatmap", xAxisIndex: index, yAxisIndex: index, data: map.cells, progressive: 0,
        emphasis: { itemStyle: { borderColor: charts.color("ink"), borderWidth: 1 } },
        markLine: { silent: true, symbol: "none", label: { show: false }, lineStyle: { color: charts.color("ink"), type: "solid", width: 1 }, data: map.lines },
      });
      if (!beside || index === maps.length - 1) top += height + 72;
    });
    const [min, max] = about.range(maps);
    option.visualMap = {
      type: "continuous", min, max, calculable: true, orient: "horizontal", left, bottom: 0, itemWidth: 12, itemHeight: 180,
      inRange: { color: about.colors }, outOfRange: { color: charts.color("head") }, formatter: about.format,
      textStyle: { color: charts.color("soft"), fontSize: 11 }, precision: 3,
      seriesIndex: maps.map((_, index) => index),
    };
    option.tooltip.formatter = ({ seriesIndex, value, componentType }) =>
      componentType === "series" ? about.tip(maps[seriesIndex], value) : "";
    stage.draw(option, top + 36);
    stage.said.textContent = maps.map((map) => {
      const most = map.cells.reduce((found, cell) => (cell[2] > found[2] ? cell : found));
      return `${map.name}: most ${about.format(most[2])}, ${about.where(map, most)}`;
    }).join("; ") + ".";
  }

  charts.kinds["device-load"] = (figure, section, data) => {
    const stage = charts.stage(figure, "Heat map of the load of devices in every MoE layer");
    let quantity = "share";
    const noun = () => (quantity === "fullest" ? "expert" : "device");
    const where = (map, [x, y]) => `${noun()} ${y} in layer ${map.xs[x]}`;
    const lines = {
      share: (own, y, x) => [
        `${own.share[y][x].toFixed(3)} of the mean, ${(own.share[y][x] * own.mean[x]).toFixed(1)} tokens a step`,
        `${own.experts[y][x].toFixed(1)} experts with a token`,
      ],
      fullest: (own, y, x) => [
        `${own.fullest[y][x].toFixed(3)} of the mean expert's tokens in its fullest copy`,
        `${own.copies[y][x]} ${own.copies[y][x] === 1 ? "copy" : "copies"}`,
      ],
    };
    lines.experts = lines.share;
    const render = () => {
      const maps = charts.shown(section).map((plan) => {
        const own = data.values[data.of[plan]];
        const n = own[quantity].length;
        return {
          name: section.plans[plan], own, xs: data.layers.map(String), ys: numbers(n), cells: cellsOf(own[quantity]),
          lines: quantity === "fullest" ? [] : nodeLines(n, data.per_node[plan], "yAxis"),
        };
      });
      draw(figure, stage, maps, {
        xName: "MoE layer", yName: noun(), left: 52, where,
        colors: quantity === "share" ? DIVERGING : RISING, range: quantity === "share" ? even : scale,
        format: (value) => `${value.toFixed(2)}${quantity === "experts" ? " experts" : " of the mean"}`,
        tip: (map, cell) => charts.tip(where(map, cell), [map.name, ...lines[quantity](map.own, cell[1], cell[0])]),
      });
    };
    const options = [
      ["share", "devices: tokens over the mean"], ["experts", "devices: experts with a token"],
      ["fullest", "experts: tokens of the fullest copy"],
    ];
    stage.place.before(charts.element("div", { className: "controls" },
      charts.select("Colours show", options, quantity, (value) => { quantity = value; render(); })));
    return render;
  };

  charts.kinds.traffic = (figure, section, data) => {
    const stage = charts.stage(figure, "Heat map of the traffic between devices");
    const noun = (map) => (map.byNode ? "node" : "device");
    const where = (map, [x, y]) => `from ${noun(map)} ${y} to ${noun(map)} ${x}`;
    return () => {
      const maps = charts.shown(section).map((plan) => {
        const own = data.values[data.of[plan]];
        const byNode = data.by_node[plan];
        const lines = (axis) => nodeLines(own.length, data.per_node[plan], axis);
        return {
          name: section.plans[plan], byNode, xs: numbers(own.length), ys: numbers(own.length),
          cells: cellsOf(own).filter(([x, y]) => byNode || x !== y), lines: [...lines("xAxis"), ...lines("yAxis")],
        };
      });
      draw(figure, stage, maps, {
        xName: `destination ${noun(maps[0])}`, yName: `source ${noun(maps[0])}`, left: 52, where,
        colors: RISING, range: scale, format: charts.bytes, square: true, beside: true,
        tip: (map, cell) => charts.tip(where(map, cell), [map.name, `${charts.bytes(cell[2])} a step`]),
      });
    };
  };

  charts.kinds.links = (figure, section, data) => {
    const stage = charts.stage(figure, "Heat map of the time that ports are busy");
    const where = (map, [x, y]) => `device ${x}, ${map.ys[y]}`;
    return () => {
      const maps = charts.shown(section).map((plan) => {
        const own = data.values[data.of[plan]];
        return {
          name: section.plans[plan], own, xs: numbers(own.busy_s[0].length), ys: data.ports[plan],
          cells: cellsOf(own.busy_s), lines: nodeLines(own.busy_s[0].length, data.per_node[plan], "xAxis"),
        };
      });
      draw(figure, stage, maps, {
        xName: "device", yName: "", left: 118, where, colors: RISING, range: scale, format: charts.seconds,
        tip: (map, cell) => charts.tip(where(map, cell), [
          map.name, `busy ${charts.seconds(cell[2])} a step`, `${charts.bytes(map.own.bytes[cell[1]][cell[0]])} a step`,
        ]),
      });
    };
  };
})();
