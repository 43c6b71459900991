"use strict";
// Lanes of a step, of one plan or two on one time axis: drag to move, buttons or Ctrl and wheel to zoom.

charts.kinds.timeline = (figure, section, data) => {
  const hidden = new Set();
  const stage = charts.stage(figure, "Timeline: arrow keys move, plus and minus zoom, Home shows the whole step");
  const span = { from: 0, to: 1 };
  const NS = 1e-9;
  const LEFT = 128;

  const panels = () => charts.shown(section).map((plan) => ({ plan, lanes: data.values[data.of[plan]] }));
  const length = () => Math.max(...panels().map(({ lanes }) => end(lanes)));
  const end = (lanes) => Math.max(...lanes.times.map(([begin, busy, waiting]) =>
    begin.reduce((most, from, op) => Math.max(most, from + busy[op] + waiting[op]), 0)));

  for (const lanes of data.values) lanes.divided = lanes.ops.some(([, , chunk]) => chunk > 0);

  function bars(lanes) {
    const items = [];
    const waits = data.kinds.findIndex(([kind]) => kind === "waiting");
    lanes.times.forEach(([begin, busy, waiting], device) => {
      lanes.ops.forEach(([kind, , , row], op) => {
        const lane = device * lanes.rows.length + row;
        const done = begin[op] + busy[op];
        if (busy[op]) items.push([lane, begin[op], done, kind, op, device]);
        if (waiting[op]) items.push([lane, done, done + waiting[op], waits, op, device]);
      });
    });
    return items.filter(([, , , kind]) => !hidden.has(kind));
  }

  const opName = (lanes, op) => {
    const [kind, layer, chunk] = lanes.ops[op];
    return [data.kinds[kind][0], layer >= 0 ? `layer ${layer}` : "", lanes.divided && chunk >= 0 ? `part ${chunk}` : ""].filter(Boolean).join(", ");
  };

  function tip(lanes, [lane, , , , op, device]) {
    const [begin, busy, waiting] = lanes.times[device].map((times) => times[op]);
    const moved = lanes.bytes[op];
    const seconds = (time) => charts.seconds(time * NS);
    return charts.tip(opName(lanes, op), [
      `device ${lanes.devices[device]}, ${lanes.rows[lane % lanes.rows.length]}`,
      `start ${seconds(begin)}, end ${seconds(begin + busy + waiting)}`,
      `own work ${seconds(busy)}${waiting ? `, then waiting ${seconds(waiting)}` : ""}`,
      moved && `sends ${charts.bytes(moved[0][device])}, receives ${charts.bytes(moved[1][device])}`,
    ]);
  }

  function bar(params, api) {
    const [left, top] = api.coord([api.value(1), api.value(0)]);
    const [right] = api.coord([api.value(2), api.value(0)]);
    const height = api.size([0, 1])[1] * 0.86;
    const { x, y, width, height: tall } = params.coordSys;
    const shape = echarts.graphic.clipRectByRect(
      { x: left, y: top - height / 2, width: Math.max(right - left, 0.5), height }, { x, y, width, height: tall });
    if (!shape) return null;
    const [kind, color] = data.kinds[api.value(3)];
    const lanes = panels()[params.seriesIndex].lanes;
    const names = kind === "waiting" || height < 11 ? [] : [opName(lanes, api.value(4)), kind];
    const text = names.find((name) => name.length * 5.6 < shape.width - 4);
    return {
      type: "rect",
      shape,
      style: { fill: kind === "waiting" ? charts.waiting : color },
      textContent: text && {
        style: { text, fontSize: 10, fill: charts.ink(color) },
      },
      textConfig: { position: "inside" },
    };
  }

  function draw() {
    charts.waiting = charts.color("waiting");
    const shown = panels();
    const total = length();
    const left = figure.clientWidth < 560 ? 84 : LEFT;
    const option = { ...charts.base(), title: [], grid: [], xAxis: [], yAxis: [], series: [] };
    let top = 0;
    shown.forEach(({ plan, lanes }, index) => {
      const n = lanes.devices.length * lanes.rows.length;
      const height = n * Math.max(7, Math.min(20, 420 / n));
      option.title.push(charts.title(charts.short(section.plans[plan], figure.clientWidth - 60), 0, top));
      option.grid.push({ left, right: 12, top: top + 24, height });
      option.xAxis.push(charts.axis({
        type: "value", min: 0, max: total, gridIndex: index, splitLine: { show: true, lineStyle: { color: charts.color("line") } },
        axisLabel: { formatter: (time) => charts.seconds(time * NS), hideOverlap: true },
      }));
      option.yAxis.push(charts.axis({
        type: "category", inverse: true, gridIndex: index, data: labels(lanes, left < LEFT),
        axisLabel: { interval: height / n < 11 ? (lane) => lane % lanes.rows.length === 0 : 0, fontSize: height / n < 9 ? 8 : 10 },
      }));
      option.series.push({
        type: "custom", renderItem: bar, xAxisIndex: index, yAxisIndex: index, data: bars(lanes),
        encode: { x: [1, 2], y: 0 }, clip: true, progressive: 4000,
      });
      top += height + 58;
    });
    const all = shown.map((_, index) => index);
    const zoom = { xAxisIndex: all, filterMode: "weakFilter", startValue: span.from, endValue: span.to };
    option.dataZoom = [
      { ...zoom, type: "inside", zoomOnMouseWheel: "ctrl", moveOnMouseWheel: "shift", preventDefaultMouseMove: false },
      { ...zoom, type: "slider", height: 22, bottom: 4, left, right: 12, showDetail: false, brushSelect: false, showDataShadow: false },
    ];
    option.tooltip.formatter = ({ seriesIndex, value }) => tip(shown[seriesIndex].lanes, value);
    stage.draw(option, top + 34);
    stage.chart.off("datazoom");
    stage.chart.on("datazoom", () => {
      const { startValue, endValue } = stage.chart.getOption().dataZoom[0];
      Object.assign(span, { from: startValue, to: endValue });
    });
    stage.said.textContent = shown.map(({ plan, lanes }) => {
      const some = lanes.devices.length < lanes.n_devices ? `, ${lanes.devices.length} of ${lanes.n_devices} devices` : "";
      return `${section.plans[plan]}: step ${lanes.step}${some}, ${charts.seconds(end(lanes) * NS)}`;
    }).join("; ") + ".";
  }

  const labels = (lanes, narrow) => lanes.devices.flatMap((device) => lanes.rows.map((row, place) =>
    narrow ? (place ? "" : String(device)) : place ? row : `device ${device} · ${row}`));

  function show(from, to) {
    const total = length();
    const wide = Math.min(Math.max(to - from, total * 1e-5), total);
    span.from = Math.min(Math.max(from, 0), total - wide);
    span.to = span.from + wide;
    stage.chart.dispatchAction({ type: "dataZoom", startValue: span.from, endValue: span.to });
  }
  const zoom = (factor) => {
    const middle = (span.from + span.to) / 2;
    show(middle - ((span.to - span.from) * factor) / 2, middle + ((span.to - span.from) * factor) / 2);
  };
  const move = (part) => show(span.from + part * (span.to - span.from), span.to + part * (span.to - span.from));
  const around = () => {
    const windows = panels().map(({ lanes }) => lanes.window);
    return [Math.min(...windows.map(([from]) => from)), Math.max(...windows.map(([, to]) => to))];
  };
  const whole = () => show(0, length());

  const keys = { ArrowLeft: () => move(-0.25), ArrowRight: () => move(0.25), "+": () => zoom(0.5), "-": () => zoom(2), Home: whole };
  stage.place.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  const layers = panels()[0].lanes.layers;
  const middle = layers.length ? `Layers ${layers.join(" and ")}` : "Middle";
  const legend = data.kinds.map(([kind, color], index) => {
    const made = charts.button(kind, `Show or hide ${kind}`, () => {
      if (!hidden.delete(index)) hidden.add(index);
      made.ariaPressed = String(!hidden.has(index));
      draw();
    });
    made.ariaPressed = "true";
    made.style.setProperty("--kind", kind === "waiting" ? "var(--waiting)" : color);
    return made;
  });
  stage.place.before(
    charts.element("div", { className: "controls legend" }, ...legend),
    charts.element("div", { className: "controls" },
      charts.button(middle, "Zoom to the middle of the step", () => show(...around())),
      charts.button("Whole step", "Show all of the step", whole),
      charts.button("−", "Zoom out", () => zoom(2)), charts.button("+", "Zoom in", () => zoom(0.5)),
      charts.button("←", "Earlier", () => move(-0.5)), charts.button("→", "Later", () => move(0.5))));
  [span.from, span.to] = around();
  return draw;
};
